"""Text from ids that arrive one by one: a token may end inside a character, so a stream holds back what is not complete.

Byte-level BPE cuts text into bytes: "é" is two, an emoji four, and they may be four tokens. Half a character decodes to U+FFFD,
so a piece that ends with it waits for its rest. The tokenizer is any with transformers' `decode`, ours included.

    stream = TextStream(tokenizer); print(stream.add(id), end="", flush=True)
"""

from typing import Any

UNFINISHED = "\ufffd"  # what half a character decodes to


class TextStream:
    """The text of a growing sequence of ids, without special tokens; all pieces together equal `decode` of all ids."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        # The last piece: some tokenizers write a token differently at the beginning.
        self.written: list[int] = []
        self.waiting: list[int] = []

    def add(self, id: int) -> str:
        """The characters that this id completes, perhaps none."""
        self.waiting.append(id)
        return "" if self._text().endswith(UNFINISHED) else self.finish()

    def finish(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed."""
        text = self._text()
        self.written, self.waiting = self.waiting, []
        return text

    def _text(self) -> str:
        before = self.tokenizer.decode(self.written, skip_special_tokens=True)
        return self.tokenizer.decode(self.written + self.waiting, skip_special_tokens=True)[len(before) :]
