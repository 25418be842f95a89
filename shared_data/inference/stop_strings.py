"""Stop strings: texts that end a sequence, wherever the tokens are cut.

"\\n\\nQ:" may be one token or four, may begin inside one token and end inside another ("x\\n", "\\nQ: Who"), and a character of
it may be two tokens. So bytes are compared, not ids: a token completes a stop string where the string lies in the bytes of the last
tokens and ends inside this one. That is the rule of transformers' `StopStringCriteria`; the prompt counts, too.

The ids that are returned contain the stop string, as in transformers; a text for people ends before it (`TextBeforeStop`).

    uv run python -c "from shared_data.inference.stop_strings import *; t = TextBeforeStop(['END']); print(t.add('the E'), t.add('ND.'), sep='|')"
"""

from collections.abc import Sequence
from typing import Any

from shared_data.errors import UserError


class StopCriteria:
    """Where a sequence ends: at one of the ids, or at a token that completes one of the strings.

    Raises `UserError` for stop strings without a tokenizer, or with one that does not say which bytes a token stands for.
    """

    def __init__(
        self, stop_ids: Sequence[int] = (), stop_strings: Sequence[str] = (), tokenizer: Any = None
    ) -> None:
        if stop_strings and tokenizer is None:
            raise UserError("stop_strings needs the texts of tokens; pass tokenizer=tokenizer as well")
        if stop_strings and not hasattr(tokenizer, "decode_bytes"):
            raise UserError(
                "stop_strings needs a tokenizer that says which bytes a token stands for; pass that of this level's load_tokenizer"
            )
        self.stop_ids = stop_ids
        self.tokenizer = tokenizer
        self.patterns = [text.encode("utf-8") for text in stop_strings]
        self.longest = max(map(len, self.patterns), default=0)

    def are_met(self, ids: Sequence[int]) -> bool:
        """Whether a sequence, prompt and new ids, ends with its last id."""
        return ids[-1] in self.stop_ids or (bool(self.patterns) and self._completes(ids))

    def _completes(self, ids: Sequence[int]) -> bool:
        """A pattern of n bytes that ends in the last token begins at most n - 1 bytes before it; each token has at least one."""
        last = self.tokenizer.decode_bytes(ids[-1:])
        before = self.tokenizer.decode_bytes(ids[-self.longest : -1])
        return any(pattern in _last_bytes(before, len(pattern) - 1) + last for pattern in self.patterns)


class TextBeforeStop:
    """A text that arrives in pieces, up to its first stop string; an end that may become one waits for what follows."""

    def __init__(self, stop_strings: Sequence[str]) -> None:
        self.stop_strings = stop_strings
        self.waiting = ""
        self.stopped = False

    def add(self, piece: str) -> str:
        """What is certain to stand before any stop string."""
        if self.stopped:
            return ""
        text = self.waiting + piece
        places = [place for stop in self.stop_strings if (place := text.find(stop)) >= 0]
        if places:
            self.stopped, self.waiting = True, ""
            return text[: min(places)]
        held = max((_begun(text, stop) for stop in self.stop_strings), default=0)
        self.waiting = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What waited for a stop string that never came."""
        text, self.waiting = self.waiting, ""
        return text


def text_before_stop(text: str, stop_strings: Sequence[str]) -> str:
    """The text up to its first stop string, or all of it."""
    stream = TextBeforeStop(stop_strings)
    return stream.add(text) + stream.finish()


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of the text are the beginning of the stop string."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)


def _last_bytes(data: bytes, count: int) -> bytes:
    return data[max(0, len(data) - count) :]
