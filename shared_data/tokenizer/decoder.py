"""Step 4 of a `tokenizer.json`: the decoder, from tokens back to text.

Each step takes the list of tokens that the one before made; at the end they are joined. Byte-level files have the one step
`ByteLevel`. Files that came from SentencePiece (Kudo and Richardson 2018) have four, here for `▁a`, `<0xC3>`, `<0xA9>`, `▁b`:

    Replace "▁" by " "   ' a' '<0xC3>' '<0xA9>' ' b'      Fuse          ' aé b'
    ByteFallback         ' a' 'é' ' b'                    Strip left 1  'aé b'

A kind that is not known is refused (`UserError`). Level 1 is `tokenizers`.

    uv run python -c "from shared_data.tokenizer.decoder import *; print(Decoder({'type': 'ByteFallback'}).text(['<0xC3>', '<0xA9>']))"
"""

import re
from collections.abc import Callable
from itertools import groupby

from shared_data.errors import UserError
from shared_data.tokenizer.byte_level import symbols_to_bytes
from shared_data.tokenizer.normalizer import Definition, flatten, replacement

Step = Callable[[list[str]], list[str]]

# A token that stands for one byte. (Rust's reading of hexadecimal digits allows a plus sign.)
_BYTE_TOKEN = re.compile(r"<0x([0-9a-fA-F]{2}|\+[0-9a-fA-F])>")


class Decoder:
    """The `decoder` object: tokens to text."""

    def __init__(
        self, definition: Definition | None, byte_level: bool = False, byte_fallback: bool = False
    ) -> None:
        """Build the steps; raises `UserError` for a kind that is not supported.

        byte_level, byte_fallback: how the model writes bytes, even if no step here reads them.
        """
        steps = flatten(definition, "decoders")
        self._steps = [_step_of(step) for step in steps]
        kinds = [step.get("type") for step in steps]
        # Bytes in, bytes out: no token changes another, so bytes may be joined before they become text.
        self.is_byte_level = kinds == ["ByteLevel"]
        self._separator = " " if definition is None else ""  # as `tokenizers` does
        self._knows_bytes = byte_fallback or "ByteFallback" in kinds
        self._has_symbols = byte_level or "ByteLevel" in kinds
        alone = [step for step in steps if step.get("type") in ("Replace", "Metaspace")]
        self._alone = [_step_of(step | {"prepend_scheme": "never"}) for step in alone]

    def text(self, tokens: list[str]) -> str:
        """The text of tokens, as the file writes them."""
        for step in self._steps:
            tokens = step(tokens)
        return self._separator.join(tokens)

    def bytes_of(self, token: str) -> bytes:
        """The bytes that a token stands for in the middle of a text: a space for `▁`, one byte for `<0x0A>`."""
        if self._has_symbols:
            return symbols_to_bytes(token)
        if self._knows_bytes and (byte := byte_of(token)) is not None:
            return bytes([byte])
        tokens = [token]
        for step in self._alone:
            tokens = step(tokens)
        return "".join(tokens).encode("utf-8")


def byte_of(token: str) -> int | None:
    """The byte that a token such as `<0x0A>` stands for; None for any other token."""
    match = _BYTE_TOKEN.fullmatch(token)
    return int(match[1], 16) if match else None


def _step_of(step: Definition) -> Step:
    """What one step of the file does to the tokens."""
    match step.get("type"):
        case "ByteLevel":
            return _join_symbols
        case "ByteFallback":
            return _join_bytes
        case "Fuse":
            return lambda tokens: ["".join(tokens)]
        case "Replace":
            replace = replacement(step)
            return lambda tokens: [replace(token) if token else token for token in tokens]
        case "Strip":
            content, start, stop = step["content"], int(step["start"]), int(step["stop"])
            return lambda tokens: [_strip(token, content, start, stop) for token in tokens]
        case "Metaspace":
            space, keeps_first = step["replacement"], step.get("prepend_scheme", "always") == "never"
            return lambda tokens: _write_spaces(tokens, space, keeps_first)
        case kind:
            raise UserError(
                f"its decoder {kind!r} is not supported; ByteLevel, ByteFallback, Fuse, Replace, Strip and Metaspace are"
            )


def _join_symbols(tokens: list[str]) -> list[str]:
    """Tokens written in symbols, one a byte: the text of all their bytes together."""
    return [b"".join(map(symbols_to_bytes, tokens)).decode("utf-8", errors="replace")]


def _join_bytes(tokens: list[str]) -> list[str]:
    """A run of byte tokens becomes its text, or one U+FFFD a byte where the run as a whole is no UTF-8."""
    joined: list[str] = []
    for is_bytes, run in groupby(tokens, lambda token: byte_of(token) is not None):
        if not is_bytes:
            joined += run
            continue
        data = bytes(byte for token in run if (byte := byte_of(token)) is not None)
        try:
            joined.append(data.decode("utf-8"))
        except UnicodeDecodeError:
            joined += ["\ufffd"] * len(data)
    return joined


def _strip(token: str, content: str, start: int, stop: int) -> str:
    """A token without up to `start` of a character at its beginning and up to `stop` at its end."""
    for _ in range(start):
        token = token.removeprefix(content)
    for _ in range(stop):
        token = token.removesuffix(content)
    return token


def _write_spaces(tokens: list[str], space: str, keeps_first: bool) -> list[str]:
    """Spaces as spaces; those of the first token are what the pre-tokenizer has put there, unless it `keeps_first`."""
    written = [token.replace(space, " ") for token in tokens]
    if tokens and not keeps_first:
        written[0] = tokens[0].replace(space, "")
    return written
