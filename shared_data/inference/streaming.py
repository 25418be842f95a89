"""Text from ids that arrive one by one: a token may end inside a character, so a stream holds back what is not complete.

Byte-level BPE cuts text into bytes: "é" is two, an emoji four, and they may be four tokens; so do the byte tokens of Llama-2 (`<0xC3>` `<0xA9>`).
Half a character decodes to U+FFFD, so a piece that ends with it waits for its rest. Such tokenizers also take the space from the first
word of what they decode; so each piece is decoded behind the one before it, and never as a beginning. The tokenizer is any with
transformers' `decode`, ours included. What may become a stop string is held back, too.

    stream = TextStream(tokenizer); print(stream.add(id), end="", flush=True)
"""

from collections.abc import Sequence
from typing import Any

from shared_data.inference.stop_strings import TextBeforeStop

UNFINISHED = "\ufffd"  # what half a character decodes to


class TextStream:
    """The text of a growing sequence of ids, without special tokens; all pieces together equal `decode` of all ids, up to a stop string.

    With byte tokens that holds for text in UTF-8: their decoder takes back whole characters that broken bytes follow, a stream cannot.
    """

    def __init__(self, tokenizer: Any, stop_strings: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.before_stop = TextBeforeStop(stop_strings)
        self.written: list[int] = []  # the last ids with text, which decide how the next ones begin
        self.waiting: list[int] = []

    def add(self, id: int) -> str:
        """The characters that this id completes, perhaps none."""
        self.waiting.append(id)
        return "" if self._new_text().endswith(UNFINISHED) else self.before_stop.add(self._take())

    def finish(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed."""
        return self.before_stop.add(self._take()) + self.before_stop.finish()

    def _take(self) -> str:
        text = self._new_text()
        # Behind ids without text (special tokens) a piece would be a beginning, too.
        self.written = self.waiting if text else self.written + self.waiting
        self.waiting = []
        return text

    def _new_text(self) -> str:
        before = self._text_of(self.written)
        return self._text_of(self.written + self.waiting)[len(before) :]

    def _text_of(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text
