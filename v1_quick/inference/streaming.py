"""Text from ids that arrive one by one: `tokenizers.decoders.DecodeStream` holds back characters that are not complete.

Levels 2 and 3 do it with Python's incremental UTF-8 decoder over the bytes of each token.

    stream = TextStream(tokenizer); print(stream.add(id), end="", flush=True)
"""

from tokenizers.decoders import DecodeStream

from v1_quick.data_pipeline.tokenizer.tokenizer import Tokenizer


class TextStream:
    """The text of a growing sequence of ids, without special tokens; all pieces together equal `decode` of all ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.stream = DecodeStream(skip_special_tokens=True)
        self.ids: list[int] = []
        self.written = 0

    def add(self, id: int) -> str:
        """The characters that this id completes, perhaps none."""
        self.ids.append(id)
        text = self.stream.step(self.tokenizer.backend, id) or ""
        self.written += len(text)
        return text

    def finish(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed."""
        return self.tokenizer.decode(self.ids, skip_special_tokens=True)[self.written :]
