"""What is a document of a plain text file? Cut a stream of text into documents without holding the file.

- Where `<|endoftext|>` occurs (the files of TinyStories, any corpus of nanoGPT's tradition), documents stand between.
- A folder of text files is usually a document a file, and so it is read: files of up to a million characters.
- One large file without separators (tinyshakespeare.txt, WikiText, a book) would leave nothing to hold out for validation,
  so it is cut into groups of paragraphs, about two thousand characters each. A blank line may hold spaces; where none
  comes in time, a group ends at the end of a line, without lines at the end of a sentence or of a word.

`data.text_unit` replaces this guess by "file", "paragraphs" or "line". Level 1 uses the same rules on the lines that
`datasets` streams.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import chain

SEPARATOR = "<|endoftext|>"
LOOK_AHEAD = (
    1_000_000  # characters in which a separator must occur, and the longest file that is one document
)
GROUP = 2_000  # characters after which a group of paragraphs ends at the next mark
LONGEST_GROUP = 32_000  # characters after which it ends in any case
LONGEST_RECORD = 100_000_000  # characters of a line or record: more is a mistake, or meant to fill the memory
# Where a group may end, the best first, and up to how many characters the mark is looked for.
_MARKS = (
    (re.compile(r"\n[^\S\n]*\n"), 2 * GROUP),  # a blank line
    (re.compile(r"\n"), LONGEST_GROUP),
    (re.compile(r"[。！？][”’」』]*|[.!?][\"”’)]*\s"), 2 * GROUP),  # the end of a sentence
    (re.compile(r"\s"), LONGEST_GROUP),
)


class TooLongError(Exception):
    """A record has more than so many characters."""


def split_text(chunks: Iterable[str], unit: str, only_file: bool) -> Iterator[str]:
    """Cut text that comes in chunks into documents; `only_file` says that the corpus is this one file."""
    chunks = iter(chunks)
    if unit == "auto":
        head = ""
        while len(head) < LOOK_AHEAD and (chunk := next(chunks, None)) is not None:
            head += chunk
        if SEPARATOR in head:
            unit = "separator"
        else:
            unit = "paragraphs" if only_file or len(head) >= LOOK_AHEAD else "file"
        chunks = chain([head], chunks)
    if unit == "separator":
        pieces = split_at(chunks, SEPARATOR, LONGEST_RECORD)
    elif unit == "line":
        pieces = split_at(chunks, "\n", LONGEST_RECORD)
    elif unit == "paragraphs":
        pieces = paragraph_groups(chunks)
    else:
        pieces = iter(["".join(chunks)])
    return (piece.strip() for piece in pieces if piece and not piece.isspace())


def split_at(chunks: Iterable[str], separator: str, longest: int | None = None) -> Iterator[str]:
    """`"".join(chunks).split(separator)`, streamed, in time linear in the text however long a piece is.

    longest: raise `TooLongError` for a piece of more characters, before more of it is read.

    >>> list(split_at(["one|t", "wo|", "three"], "|"))
    ['one', 'two', 'three']
    """
    parts: list[str] = []  # of the piece that has not ended
    length, rest = 0, ""  # rest: its last characters, which may begin a separator
    for chunk in chunks:
        first, *others = (rest + chunk).split(separator)
        if others:
            yield "".join([*parts, first])
            yield from others[:-1]
            parts, length, first = [], 0, others[-1]
        cut = max(0, len(first) - len(separator) + 1)
        parts.append(first[:cut])
        length, rest = length + cut, first[cut:]
        if longest is not None and length > longest:
            raise TooLongError(longest)
    yield "".join([*parts, rest])


def paragraph_groups(chunks: Iterable[str]) -> Iterator[str]:
    """Groups of whole paragraphs; a text without blank lines is cut at lines, one without lines at sentences or words."""
    buffer = ""
    for chunk in chunks:
        buffer += chunk
        start = 0
        while len(buffer) - start > LONGEST_GROUP:
            cut = _place_to_cut(buffer, start)
            yield buffer[start:cut]
            start = cut
        buffer = buffer[start:]
    while len(buffer) > GROUP:
        cut = _place_to_cut(buffer, 0)
        yield buffer[:cut]
        buffer = buffer[cut:]
    yield buffer


def _place_to_cut(buffer: str, start: int) -> int:
    """The end of a group that begins at `start`."""
    if len(buffer) - start <= 2 * GROUP and not _MARKS[0][0].search(buffer, start + GROUP):
        return len(buffer)  # the last paragraph stays whole
    for mark, longest in _MARKS:
        if found := mark.search(buffer, start + GROUP, start + longest):
            return found.end()
    return min(start + LONGEST_GROUP, len(buffer))
