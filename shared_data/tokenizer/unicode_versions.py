"""Which characters a tokenizer of the `tokenizers` library does not know yet.

A split pattern asks Unicode what a letter is (`\\p{L}`), and Unicode grows every year: a letter of Unicode 17 is no letter
to a program built on the tables of Unicode 16. Ids depend on that, so the tables are part of a tokenizer although no
`tokenizer.json` names them. `tokenizers` 0.23 splits with Oniguruma (Unicode 16) and composes accents (NFC) with tables of
Unicode 9; the `Digits` step asks Rust (Unicode 17); `regex` and `unicodedata` here are newer. The lists below were measured over
all 1,112,064 characters, and `tests/parity/test_tokenizer_unicode.py` measures them again.

Level 1 is that library and needs no such list.

    uv run python -c "from shared_data.tokenizer.unicode_versions import NEWER_CHARACTERS as n; print(len(n))"
"""

import re
import unicodedata
from typing import Literal, get_args

# Assigned in Unicode 17 or 18 (ranges in hexadecimal; characters that are still unassigned may lie between).
_NEWER_RANGES = """
558 58B-58C 5C8-5C9 88F B53-B54 C5C CDC 1ACF-1AF0 208F 209D-209F 20C1-20C4 2B96 2E60-2E63 A7CE-A7CF A7D2 A7D4
A7DD-A7F1 AB6C-AB6D FBC3-FBD2 FD90-FD91 FDC8-FDCE 107BB-107BF 10940-10959 10EC5-10EFB 11B0A-11B67 11DB0-11DF1
1246F 12475-1247F 12550-12686 16EA0-16ED3 16FF2-16FF6 187F8-187FF 18CD6-18CDA 18D09-191D2 1B123-1B128 1B168
1CCFA-1CCFC 1CEBA-1CEFD 1D127-1D128 1D1EB-1D1FF 1D250-1D281 1D6A6 1DB00-1DB1C 1DF1F-1DF24 1DF2B-1DFFF 1E6C0-1E6FF
1F1AE 1F6D8-1F6D9 1F777-1F77A 1F7DA-1F7DB 1F7F1-1F7FF 1F8D0-1F8D8 1FA54-1FA57 1FA8A-1FA8E 1FAC8-1FACD 1FADD
1FAEA-1FAEF 1FAF9-1FAFA 1FBFA 2B73A-2B73F 2B81E 2CEA2-2CEAD 323B0-3FC3F
"""

# Combine or decompose in today's Unicode, but did not exist in the tables that `tokenizers` normalizes with.
_NEWER_COMBINING_RANGES = """
5C8-5C9 7FD 897-89F 8CA-8D3 9FE C3C D3B-D3C EBA 1715 1ABF-1AF0 1DF6-1DFA A82C 105C0-105FF 10D24-10D27 10D69-10D6D
10EAB-10EAC 10ECB-10ECF 10EF0-10EFB 10EFD-10EFF 10F46-10F50 10F82-10F85 11070 1133B 11380-113FF 1145E 11839-1183A
11930-11943 119E0 11A34 11A47 11A99 11D42 11D44-11D45 11D97 11F41-11F42 16100-1613F 16D40-16D7F 16FF0-16FF1
1D127-1D128 1D250-1D252 1D25F 1D280-1D281 1E08F 1E130-1E136 1E2AE 1E2EC-1E2EF 1E4EC-1E4EF 1E5EE-1E5EF 1E6E3 1E6E6
1E6EE-1E6EF 1E6F5
"""

# Decompose to a likeness (NFKC, NFKD) in today's Unicode, and stay as they are in those tables.
_NEWER_COMPATIBILITY_RANGES = """
32FF A7F1-A7F4 AB69 10781-10785 10787-107B0 107B2-107BA 1CCD6-1CCF9 1E030-1E06D 1F16C 1FBF0-1FBF9
"""

_UNASSIGNED = (
    "\U0010fffe"  # a noncharacter: no version of Unicode will ever call it a letter, a digit or a space
)


def _characters(ranges: str) -> frozenset[str]:
    """The characters of ranges written as `A7CE-A7CF 10EC5`."""
    bounds = [bound.partition("-") for bound in ranges.split()]
    return frozenset(
        chr(code) for first, _, last in bounds for code in range(int(first, 16), int(last or first, 16) + 1)
    )


NEWER_CHARACTERS = _characters(_NEWER_RANGES)
# Unicode 18: Rust itself, not Oniguruma, finds digits.
NEWER_DIGITS = _characters("1246F 12475-1247F 12550-12686")
NEWER_COMBINING = _characters(_NEWER_COMBINING_RANGES)
NEWER_COMPATIBILITY = NEWER_COMBINING | _characters(_NEWER_COMPATIBILITY_RANGES)

NormalForm = Literal["NFC", "NFD", "NFKC", "NFKD"]
_NEWER = {form: NEWER_COMPATIBILITY if "K" in form else NEWER_COMBINING for form in get_args(NormalForm)}
_AT_NEWER = {form: re.compile(f"([{''.join(sorted(newer))}])") for form, newer in _NEWER.items()}


def hide_newer_characters(text: str, newer: frozenset[str] = NEWER_CHARACTERS) -> str:
    """Put an unassigned character for each newer one: the same length, and split as the reference would split it."""
    if text.isascii() or newer.isdisjoint(text):
        return text
    return "".join(_UNASSIGNED if character in newer else character for character in text)


def normalize(form: NormalForm, text: str) -> str:
    """A normal form, with the tables of the reference: to those, a newer combining mark is a letter like any other.

    So the text is cut at such characters, which neither move nor combine, and each part is normalized for itself.
    """
    if text.isascii():
        return text
    if _NEWER[form].isdisjoint(text):
        return unicodedata.normalize(form, text)
    parts = _AT_NEWER[form].split(text)
    parts[::2] = [unicodedata.normalize(form, part) for part in parts[::2]]
    return "".join(parts)
