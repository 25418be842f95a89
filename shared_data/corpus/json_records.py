"""Records of a JSON file, read one block at a time: the elements of a top-level array, or values that follow one another.

The standard library cannot stream JSON, but `raw_decode` says where a value ends: try, and read on where it is cut. What is no JSON
is refused, also between the records and behind the array: it may be what is left of records.

    uv run python -c "from shared_data.corpus.json_records import *; print(list(json_records(['[{\\"text\\": ', '\\"a\\"}]'], Path('a.json'))))"
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from shared_data.cleaning.repair import join_surrogates
from shared_data.corpus.text_units import LONGEST_RECORD, TooLongError
from shared_data.errors import UserError

_SPACE = " \t\n\r"


def json_records(chunks: Iterable[str], path: Path) -> Iterator[tuple[int, Any]]:
    """The numbered records. Raises `UserError` naming the file and the record for what is no JSON, or cut off."""
    text, number = _JsonText(chunks), 0
    in_array = text.next_character() == "["
    text.position += in_array
    while True:
        character = text.next_character()
        if in_array and character == "]":
            text.position += 1
            if text.next_character():
                raise UserError(
                    f"{path} goes on after its array of {number:,} records; remove what follows, or write one array"
                )
            return
        if not in_array and not character:
            return
        if in_array and number and character:  # between two records stands one comma
            if character != ",":
                raise UserError(f"{path} has no comma after record {number:,}; correct the file")
            text.position += 1
            text.next_character()
        number += 1
        yield number, text.value(f"{path}, record {number:,}")


def without_surrogates(value: Any, source: str) -> Any:
    """A JSON value whose lone surrogates, half characters that only an escape can write, became U+FFFD."""
    if "\\ud" not in source and "\\uD" not in source:
        return value
    return json.loads(join_surrogates(json.dumps(value, ensure_ascii=False)))


class _JsonText:
    """Text that comes in chunks, read up to a position; what lies before it is forgotten."""

    def __init__(self, chunks: Iterable[str]) -> None:
        self.chunks = iter(chunks)
        self.buffer, self.position = "", 0
        self._decode = json.JSONDecoder().raw_decode

    def next_character(self) -> str:
        """The next one that is no space, where `position` then stands; empty at the end of the text."""
        while True:
            while self.position < len(self.buffer) and self.buffer[self.position] in _SPACE:
                self.position += 1
            if self.position < len(self.buffer) or not self._read_on():
                return self.buffer[self.position : self.position + 1]

    def value(self, where: str) -> Any:
        """The JSON value that begins at `position`, which then stands behind it."""
        while True:
            start = self.position
            try:
                value, self.position = self._decode(self.buffer, start)
            except (ValueError, RecursionError) as error:
                cut_off = _is_cut_off(error, self.buffer)
                if cut_off and self._read_on():
                    continue
                fault = "is cut off" if cut_off else f"is not valid JSON ({error})"
                raise UserError(f"{where} {fault}; correct the file or copy it again") from error
            return without_surrogates(value, self.buffer[start : self.position])

    def _read_on(self) -> bool:
        """Append text, at least as much as is held; tell whether there was any.

        A value is tried again from its start each time, so that the text must double for the time to stay linear in it.
        """
        parts = [self.buffer[self.position :]]
        held, added = len(parts[0]), 0
        if held > LONGEST_RECORD:
            raise TooLongError(LONGEST_RECORD)
        while added <= held and (chunk := next(self.chunks, None)) is not None:
            parts.append(chunk)
            added += len(chunk)
        self.buffer, self.position = "".join(parts), 0
        return added > 0


def _is_cut_off(error: Exception, buffer: str) -> bool:
    """Whether a JSON value fails because the buffer ends inside it, rather than because it is malformed."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    # Inside a string the error points at its opening quote; else the end of the buffer is at most a literal away.
    return error.msg.startswith("Unterminated string") or error.pos >= len(buffer) - len("-Infinity")
