"""What is a document of a plain text file? Cut a stream of text into documents without holding the file.

- Where `<|endoftext|>` occurs (the files of TinyStories, any corpus of nanoGPT's tradition), documents stand between.
- A folder of text files is usually a document a file, and so it is read: files of up to a million characters.
- One large file without separators (tinyshakespeare.txt, a book) would leave nothing to hold out for validation, so it is
  cut into groups of whole paragraphs, about two thousand characters each.

`data.text_unit` replaces this guess by "file", "paragraphs" or "line". Level 1 uses the same rules on the lines that
`datasets` streams.
"""

from collections.abc import Iterable, Iterator
from itertools import chain

SEPARATOR = "<|endoftext|>"
LOOK_AHEAD = (
    1_000_000  # characters in which a separator must occur, and the longest file that is one document
)
GROUP = 2_000  # characters after which a group of paragraphs ends at the next blank line …
LONGEST_GROUP = 32_000  # … and before which it ends in any case, at a line or at a word


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
        pieces = split_at(chunks, SEPARATOR)
    elif unit == "line":
        pieces = split_at(chunks, "\n")
    elif unit == "paragraphs":
        pieces = paragraph_groups(chunks)
    else:
        pieces = iter(["".join(chunks)])
    return (piece.strip() for piece in pieces if piece and not piece.isspace())


def split_at(chunks: Iterable[str], separator: str) -> Iterator[str]:
    """`"".join(chunks).split(separator)`, streamed.

    >>> list(split_at(["one|t", "wo|", "three"], "|"))
    ['one', 'two', 'three']
    """
    rest = ""
    for chunk in chunks:
        *pieces, rest = (rest + chunk).split(separator)
        yield from pieces
    yield rest


def paragraph_groups(chunks: Iterable[str]) -> Iterator[str]:
    """Groups of whole paragraphs; a text without blank lines is cut at lines, one without lines at words."""
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
    blank_line = buffer.find("\n\n", start + GROUP, start + LONGEST_GROUP)
    if blank_line >= 0:
        return blank_line + 2
    end = start + LONGEST_GROUP
    if end >= len(buffer):
        return len(buffer)
    for separator in ("\n", " "):
        place = buffer.rfind(separator, start + GROUP, end)
        if place >= 0:
            return place + 1
    return end
