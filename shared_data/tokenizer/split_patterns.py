"""Split patterns: where text is cut before BPE, so that no token ever crosses a word boundary.

Without a cut, BPE would spend its vocabulary on "dog." "dog," "dog!" (Radford et al. 2019, section 2.2). Both patterns keep the
space with the word that follows it, so that text is joined again without a rule.

- `gpt2`: contractions, then an optional space with letters, digits or other marks, then white space.
- `gpt4` (cl100k, also Llama-3): contractions in either case, any one mark before letters, at most three digits, marks with
  the newlines after them, and newlines apart from other white space.

Level 1 hands the pattern to the Oniguruma engine of `tokenizers`. Here `regex` runs it (the standard `re` knows no
`\\p{L}`), and for ASCII text a twin of the pattern runs in `re`, twice as fast. `unicode_versions.py` has the difference
between the engines' tables.

    uv run python -c "from shared_data.tokenizer.split_patterns import *; print(PatternSplitter(GPT4_PATTERN).split('It\\'s 2025, café!'))"
"""

import re
from collections.abc import Iterator

import regex

from shared_data.errors import UserError
from shared_data.slow_patterns import is_slow
from shared_data.tokenizer.unicode_versions import NEWER_CHARACTERS, hide_newer_characters

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT4_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Qwen2's: as `gpt4`, but each digit alone.
QWEN2_PATTERN = GPT4_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
PATTERNS = {"gpt2": GPT2_PATTERN, "gpt4": GPT4_PATTERN}

# What Oniguruma reads differently from `regex`: a repeated repetition, set operations, its wider \w, hexadecimal \h.
_OTHER_DIALECT = re.compile(r"\{[\d,]+\}\+|&&|--|~~|\|\||\\[wWhHbBGKkgQ]|\\p\{\^")
# The ASCII members of the general categories that patterns use; the others hold no letter, digit or mark of ASCII.
_ASCII_CATEGORIES = {"L": "A-Za-z", "Lu": "A-Z", "Ll": "a-z", "N": "0-9", "Nd": "0-9"}
_ASCII_CATEGORIES |= {"Lt": "", "Lm": "", "Lo": "", "M": "", "Mn": "", "Mc": "", "Me": "", "Nl": "", "No": ""}

Span = tuple[int, int, bool]  # start, stop, whether the pattern matched there


class PatternSplitter:
    """Cuts text at the matches of one pattern; matches and the text between them are pieces."""

    def __init__(self, pattern: str, newer: frozenset[str] = NEWER_CHARACTERS) -> None:
        """Compile a pattern in the syntax of `tokenizer.json`; raises `UserError` where ours would read it otherwise.

        `newer` are the characters that the reference does not know yet.
        """
        self._newer = newer
        self._pattern = compile_pattern(pattern)
        self._ascii_pattern = _ascii_twin(pattern)
        # Known to match at every character; otherwise each text is checked.
        self._covers_everything = pattern in PATTERNS.values()

    def split(self, text: str) -> list[str]:
        """The pieces of a text, in order; joined they are the text again.

        >>> PatternSplitter(GPT4_PATTERN).split("It's 12345 cafés")
        ['It', "'s", ' ', '123', '45', ' cafés']
        """
        hidden = hide_newer_characters(text, self._newer)
        if hidden is text and self._pattern.groups == 0:
            fast = self._ascii_pattern if self._ascii_pattern and text.isascii() else self._pattern
            pieces = fast.findall(text)
            if self._covers_everything or sum(map(len, pieces)) == len(text):
                return pieces
        return [text[start:stop] for start, stop, _ in self.spans(text)]

    def spans(self, text: str) -> Iterator[Span]:
        """The same pieces as positions; empty matches are no pieces."""
        position = 0
        for match in self._pattern.finditer(hide_newer_characters(text, self._newer)):
            start, stop = match.span()
            if start > position:
                yield position, start, False
            if stop > start:
                yield start, stop, True
            position = stop
        if position < len(text):
            yield position, len(text), False


def compile_pattern(pattern: str, name: str = "split pattern") -> regex.Pattern[str]:
    """A pattern in the syntax of `tokenizer.json`; raises `UserError`, with its `name`, where engines would read it differently."""
    if foreign := _OTHER_DIALECT.search(pattern):
        raise UserError(
            f"the {name} {pattern!r:.200} uses {foreign.group()!r}, which regular expression engines read in different"
            " ways; rewrite that part of the pattern"
        )
    try:
        if is_slow(pattern, regex.MULTILINE):
            raise UserError(
                f"the {name} {pattern!r:.60} takes too long on a text of forty letters; rewrite it without repetitions inside of repetitions"
            )
        return regex.compile(pattern, regex.MULTILINE)  # Oniguruma's ^ and $ are those of lines
    except (regex.error, RecursionError) as error:
        raise UserError(f"the {name} {pattern!r:.60} is malformed ({error}); correct it") from error


def _ascii_twin(pattern: str) -> re.Pattern[str] | None:
    """The same pattern for ASCII text in the standard `re`; None where it uses more than the categories above."""
    twin, inside_class = [], False
    for part in re.split(r"(\\p\{\w+\}|\\.|\[|\])", pattern):
        if part.startswith("\\p{"):
            members = _ASCII_CATEGORIES.get(part[3:-1])
            if members is None or not (members or inside_class):
                return None
            part = members if inside_class else f"[{members}]"
        elif part in ("[", "]"):
            inside_class = part == "["
        twin.append(part)
    try:
        # re.ASCII, because \s of a Python string also matches U+001C to U+001F, which are no white space to Unicode.
        return re.compile("".join(twin), re.ASCII | re.MULTILINE)
    except re.error:
        return None


def cut_long_text(text: str, size: int = 1 << 20) -> Iterator[str]:
    """Parts of a long text, cut where both patterns cut in any case: between a letter and a space before a letter.

    A list of pieces takes ten times the memory of its text; cutting first keeps that small for a text of any length.
    """
    start = 0
    while len(text) - start > size:
        boundary = _SAFE_BOUNDARY.search(text, start + size)
        if boundary is None:
            break
        yield text[start : boundary.start() + 1]
        start = boundary.start() + 1
    yield text[start:]


_SAFE_BOUNDARY = re.compile(r"[A-Za-z] [A-Za-z]")
