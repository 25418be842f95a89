"""Repair a text with ftfy (encoding, control characters, Unicode) and the standard library's HTML parser.

Levels 2 and 3 do by hand what these do; see `v2_handwritten/data_pipeline/processing/cleaning.md`.

    python -c "from v1_quick.data_pipeline.processing.repair import repair_text; \
print(repair_text('<p>Tom&rsquo;s  cafÃ©</p>'))"
"""

import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser

import ftfy

_LONGEST_BOILERPLATE_LINE = 200  # characters
_BLOCK_TAGS = [
    "address",
    "article",
    "aside",
    "blockquote",
    "body",
    "br",
    "center",
    "dd",
    "div",
    "dl",
    "dt",
    "footer",
    "form",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "header",
    "hr",
    "html",
    "li",
    "main",
    "nav",
    "ol",
    "p",
    "pre",
    "section",
    "table",
    "tbody",
    "td",
    "tfoot",
    "th",
    "thead",
    "title",
    "tr",
    "ul",
]
_INVISIBLE_CHARACTERS = re.compile("[\xad\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069]")
_INVISIBLE_TAGS = frozenset(("script", "style", "head", "noscript"))


def repair_text(text: str, boilerplate_phrases: Sequence[str] = ()) -> str:
    """The repaired text."""
    return repair_and_name(text, boilerplate_phrases)[0]


def repair_and_name(text: str, boilerplate_phrases: Sequence[str] = ()) -> tuple[str, set[str]]:
    """The repaired text, and the names of the repairs that changed it."""
    done: set[str] = set()
    for name, repair in REPAIRS.items():
        repaired = repair(text)
        if repaired != text:
            done.add(name)
            text = repaired
    without = drop_boilerplate_lines(text, boilerplate_phrases)
    if without != text:
        done.add("boilerplate")
        text = normalize_whitespace(without)
    return text, done


def fix_mojibake(text: str) -> str:
    """ftfy: mojibake, surrogates, control characters, line ends and NFC; letters that are right stay as they are."""
    return ftfy.fix_text(
        text, unescape_html=False, uncurl_quotes=False, fix_latin_ligatures=False, fix_character_width=False
    )


def strip_markup(text: str) -> str:
    """The text between the tags, with entities resolved."""
    if "<" not in text and "&" not in text:
        return text
    parser = _TextOfPage()
    parser.feed(text)
    parser.close()
    return "".join(parser.pieces)


def remove_control_characters(text: str) -> str:
    """What ftfy leaves: characters without width, and marks of direction."""
    return _INVISIBLE_CHARACTERS.sub("", text)


def normalize_whitespace(text: str) -> str:
    """One space between words, no space at the ends of lines, at most one blank line."""
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def drop_boilerplate_lines(text: str, phrases: Sequence[str]) -> str:
    """Remove lines of the page around the text, as C4 does (Raffel et al. 2020, section 2.2)."""
    kept = (
        line
        for line in text.split("\n")
        if len(line) > _LONGEST_BOILERPLATE_LINE or not any(phrase in line.lower() for phrase in phrases)
    )
    return "\n".join(kept)


REPAIRS: dict[str, Callable[[str], str]] = {
    "mojibake": fix_mojibake,
    "markup": strip_markup,
    "control_characters": remove_control_characters,
    "whitespace": normalize_whitespace,
}


class _TextOfPage(HTMLParser):
    """Collects what a reader of the page would see."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._invisible = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._invisible += tag in _INVISIBLE_TAGS
        if tag in _BLOCK_TAGS:
            self.pieces.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._invisible -= tag in _INVISIBLE_TAGS
        if tag in _BLOCK_TAGS:
            self.pieces.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._invisible:
            self.pieces.append(data)
