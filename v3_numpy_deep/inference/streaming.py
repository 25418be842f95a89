"""Text from ids that arrive one by one: a token may end inside a character, so a stream holds back what is not complete.

Byte-level BPE cuts text into bytes: "é" is two, an emoji four, and they may be four tokens. Printing each token as it comes
would print U+FFFD where a character is half done. An incremental UTF-8 decoder keeps the half until its rest arrives.

Level 1: `tokenizers.decoders.DecodeStream`; level 2 is the same.

    stream = TextStream(tokenizer); print(stream.add(id), end="", flush=True)
"""

import codecs

from v3_numpy_deep.data_pipeline.tokenizer.tokenizer import Tokenizer


class TextStream:
    """The text of a growing sequence of ids, without special tokens; all pieces together equal `decode` of all ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.special_ids = set(tokenizer.special_tokens.values())
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, id: int) -> str:
        """The characters that this id completes, perhaps none."""
        return "" if id in self.special_ids else self.decoder.decode(self.tokenizer.decode_bytes([id]))

    def finish(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed."""
        return self.decoder.decode(b"", final=True)
