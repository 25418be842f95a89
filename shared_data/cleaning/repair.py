"""Repair a text: encoding, markup, control characters, boilerplate lines, whitespace.

    repair_text = whitespace ∘ boilerplate ∘ NFC ∘ control characters ∘ markup ∘ mojibake ∘ surrogates,  until nothing changes

The repairs uncover each other's work (an entity may hide a tag, a tag may stand in a boilerplate line), so they are
applied until the text stays as it is; `repair_text(repair_text(x)) == repair_text(x)` holds by construction.
Theory: `cleaning.md`. Level 1 leaves the encoding, line ends and Unicode to ftfy (`v1_quick/data_pipeline/processing/cleaning.py`).

    uv run python -c "from shared_data.cleaning.repair import repair_text; \
print(repair_text('<p>Tom&rsquo;s  cafÃ©</p>'))"
"""

import html
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence

Repairs = Mapping[str, Callable[[str], str]]  # by name, in the order in which they are applied

_PASSES = 8  # no honest text needs more


def repair_text(text: str, boilerplate_phrases: Sequence[str] = (), repairs: Repairs | None = None) -> str:
    """The repaired text; never raises, and repairing twice changes nothing more. `repairs` replace `REPAIRS`."""
    return repair_and_name(text, boilerplate_phrases, repairs)[0]


def repair_and_name(
    text: str, boilerplate_phrases: Sequence[str] = (), repairs: Repairs | None = None
) -> tuple[str, set[str]]:
    """The repaired text, and the names of the repairs that changed it."""
    done: set[str] = set()
    passes = 0
    while True:
        before = text
        for name, repair in (repairs or REPAIRS).items():
            repaired = repair(text)
            if repaired != text:
                done.add(name)
                text = repaired
        without = drop_boilerplate_lines(text, boilerplate_phrases)
        if without != text:
            done.add("boilerplate")
            text = normalize_whitespace(without)
        if text == before:
            return text, done
        passes += 1
        if passes == _PASSES:
            # An onion of tags in tags or entities in entities, made to keep a cleaner busy: take away its skins.
            text = re.sub("[<>&]", "", text)


def join_surrogates(text: str) -> str:
    """Halves of UTF-16 pairs become their character; a lone half, which has no UTF-8, becomes U+FFFD."""
    if not _SURROGATE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def fix_mojibake(text: str) -> str:
    """Undo "UTF-8 bytes read as Windows-1252 or Latin-1": turn `cafÃ©` into `café`, `â€œHiâ€\x9d` into `“Hi”`.

    Characters that are the bytes of one UTF-8 sequence in those encodings are taken for that sequence, except where
    good text may well hold them; see `_MOJIBAKE`.
    """
    if text.isascii():
        return text
    return _MOJIBAKE.sub(_decode_again, text)


def strip_markup(text: str) -> str:
    """Remove HTML: comments, scripts and styles with their content, tags, entities. `a < b` and `<3` stay."""
    if "<" in text:
        for opening, closing in _INVISIBLE:
            text = _without(text, opening, closing)
        text = _DECLARATION.sub(" ", text)
        text = _BLOCK_TAG.sub("\n", text)
        text = _TAG.sub("", text)
    if "&" in text:
        text = _NESTED_AMPERSAND.sub("&", text)
        text = _ENTITY.sub(lambda match: html.unescape(match[0]), text)
    return text


def _without(text: str, opening: re.Pattern[str], closing: re.Pattern[str]) -> str:
    """A space for all from each opening to its closing. One pass: where nothing closes any more, nothing is looked for."""
    kept, position = [], 0
    while (start := opening.search(text, position)) and (end := closing.search(text, start.end())):
        kept.append(text[position : start.start()])
        position = end.end()
    return " ".join([*kept, text[position:]])


def remove_control_characters(text: str) -> str:
    """Drop what has no place in text: terminal colours, C0 and C1 controls, zero-width and direction marks."""
    if not _CONTROL.search(text):
        return text
    text = _TERMINAL_ESCAPE.sub("", text)
    text = _LINE_END.sub("\n", text)
    return text.translate(_CONTROL_TABLE)


def normalize_unicode(text: str) -> str:
    """NFC: a letter and its combining accents become one character where Unicode has one."""
    return unicodedata.normalize("NFC", text)


def normalize_whitespace(text: str) -> str:
    """One space between words, no space at the ends of lines, at most one blank line."""
    if not _UNTIDY.search(text):
        return text
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return _BLANK_LINES.sub("\n\n", "\n".join(lines)).strip()


def drop_boilerplate_lines(text: str, phrases: Sequence[str]) -> str:
    """Remove lines of the page around the text, as C4 does (Raffel et al. 2020, section 2.2).

    Only short lines: a paragraph of prose that happens to hold a phrase is not the footer of a page.
    """
    lowered = text.lower()
    if not any(phrase in lowered for phrase in phrases):
        return text
    kept = (
        line
        for line in text.split("\n")
        if len(line) > _LONGEST_BOILERPLATE_LINE or not any(phrase in line.lower() for phrase in phrases)
    )
    return "\n".join(kept)


REPAIRS: Repairs = {
    "surrogates": join_surrogates,
    "mojibake": fix_mojibake,
    "markup": strip_markup,
    "control_characters": remove_control_characters,
    "unicode": normalize_unicode,
    "whitespace": normalize_whitespace,
}

_LONGEST_BOILERPLATE_LINE = 200  # characters
_SURROGATE = re.compile("[\ud800-\udfff]")

# --- Mojibake ---------------------------------------------------------------------------------------------------------


def _byte_characters() -> dict[str, int]:
    """Which byte 0x80–0xFF a character may have been: by Latin-1 its own number, by Windows-1252 another one for 27."""
    table = {chr(byte): byte for byte in range(0x80, 0x100)}
    for byte in range(0x80, 0xA0):
        character = bytes([byte]).decode("cp1252", "ignore")  # five bytes are unused in Windows-1252
        if character:
            table[character] = byte
    return table


_BYTE = _byte_characters()


def _class(first: int, last: int, without: str = "") -> str:
    """A regular-expression class of the characters that may be a byte of this range."""
    return (
        "["
        + "".join(re.escape(c) for c, byte in _BYTE.items() if first <= byte <= last and c not in without)
        + "]"
    )


# Punctuation that good text puts right after an accented letter: allé…, CAFÉ», où – .
_PUNCTUATION = "…’”»›“‘«‹–—·\xa0"
_NEXT = _class(0x80, 0xBF)  # a continuation byte, 10xxxxxx
_NEXT_ODD = _class(0x80, 0xBF, _PUNCTUATION)
_MOJIBAKE = re.compile(
    "(?:"
    # Two bytes, U+0080–U+00FF (Western Europe): Â or Ã before a symbol is rare in good text of any language.
    f"{_class(0xC2, 0xC3)}{_NEXT}"
    # Two bytes, U+0100–U+017F (Central Europe): Ä and Å are letters of their own; before punctuation only inside a word.
    f"|{_class(0xC4, 0xC5)}(?:{_NEXT_ODD}|[{_PUNCTUATION}](?=\\w))|(?<=[a-z]){_class(0xC4, 0xC5)}{_NEXT}"
    # Two bytes, Greek, Cyrillic, Hebrew, Arabic: whole words, so several in a row.
    f"|(?:{_class(0xCE, 0xD1)}{_NEXT}|{_class(0xD7, 0xD9)}{_NEXT}){{2,}}"
    # Three bytes (quotes, dashes, Asia), at least one of them odd; four bytes (emoji).
    f"|{_class(0xE0, 0xEF)}(?:{_NEXT_ODD}{_NEXT}|{_NEXT}{_NEXT_ODD})"
    f"|{_class(0xF0, 0xF4)}{_NEXT}{{3}}"
    ")+"
)


def _decode_again(match: re.Match[str]) -> str:
    """The characters as bytes, read as the UTF-8 they are; left alone if they are none."""
    try:
        return bytes(_BYTE[character] for character in match[0]).decode("utf-8")
    except UnicodeDecodeError:
        return match[0]


# --- Markup -----------------------------------------------------------------------------------------------------------

_INVISIBLE = [
    (re.compile("<!--"), re.compile("-->")),
    *(
        (re.compile(rf"<{tag}\b[^<>]*>", re.IGNORECASE), re.compile(rf"</{tag}\s*>", re.IGNORECASE))
        for tag in ("script", "style", "head", "noscript")
    ),
]
_DECLARATION = re.compile(r"<![a-z][^<>]*>", re.IGNORECASE)
_BLOCK_TAG = re.compile(
    r"</?(?:address|article|aside|blockquote|body|br|center|dd|div|dl|dt|footer|form|h[1-6]|header|hr|html|li|main|nav"
    r"|ol|p|pre|section|table|tbody|td|tfoot|th|thead|title|tr|ul)(?:\s[^<>]*)?/?>",
    re.IGNORECASE,
)
_TAG = re.compile(r"</?[a-zA-Z][a-zA-Z0-9:-]*(?:\s[^<>]*)?/?>")
_NESTED_AMPERSAND = re.compile(r"&(?:(?:amp|AMP|#0*38|#[xX]0*26);)+")  # &amp;amp;lt; is one < in three coats
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")

# --- Characters without a meaning -------------------------------------------------------------------------------------

_TERMINAL_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_LINE_END = re.compile("\r\n?|[\x0b\x0c\u2028\u2029]")
_DELETED = [
    *range(0x00, 0x09), *range(0x0B, 0x20), 0x7F,  # C0 controls, save tab and line feed
    0xAD, 0x200B, 0x2060, 0xFEFF,  # soft hyphen, zero-width spaces, byte order mark
    0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A),  # direction marks
    *range(0xFFF9, 0xFFFC), 0xFFFE, 0xFFFF,  # annotation marks, non-characters
]  # fmt: skip
# A C1 control is nearly always a Windows-1252 character that was read as Latin-1; browsers treat it so (HTML standard).
_CONTROL_TABLE: dict[int, str | None] = {
    **{byte: bytes([byte]).decode("cp1252", "ignore") or None for byte in range(0x80, 0xA0)},
    **dict.fromkeys(_DELETED),
}
_CONTROL = re.compile("[\u2028\u2029" + "".join(re.escape(chr(code)) for code in _CONTROL_TABLE) + "]")

_UNTIDY = re.compile(r"[^\S\n ]|  | \n|\n |\n\n\n|\A\s|\s\Z")
_BLANK_LINES = re.compile(r"\n{3,}")
