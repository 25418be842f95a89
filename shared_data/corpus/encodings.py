"""Which encoding a text file that is not UTF-8 may have: a hint for the error message, never a decision.

The encodings of East Asia write a character in two bytes, and bytes of another encoding that happen to decode give characters that
nobody writes. So a candidate must decode all of the bytes, and enough of the characters must be the commonest of its language.
Every text decodes in each of the one-byte encodings of the west, so nothing is said about those.

    uv run python -c "from shared_data.corpus.encodings import likely_encodings; print(likely_encodings('今天是我们的好日子'.encode('gbk')))"
"""

import codecs
import re

_CHINESE = (
    "[的一是不了在人有我他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生自会那后能对着事其里所去行过家十用发天如然作方成者多"
    "日都三小军二无同经法当起与好看学进将还分此心前面又定见只主没公从這時個們國來為會說對後過還學發無長問間開現東車見話裡點頭麼讓與從]"
)
_JAPANESE, _KOREAN = "[ぁ-ヺ]", "[가-힣]"
# The common characters of each encoding's language, and what part of a text they are at least. (The common ones of Chinese
# are a third of a text, the syllables of Japanese a half, and Korean is hardly written in others.)
_CANDIDATES = {
    "gb18030": (_CHINESE, 0.15),
    "big5": (_CHINESE, 0.15),
    "shift_jis": (_JAPANESE, 0.3),
    "euc_jp": (_JAPANESE, 0.3),
    "euc_kr": (_KOREAN, 0.9),
}


def likely_encodings(data: bytes) -> list[str]:
    """The names of the encodings that bytes from a file can be in, the likeliest first; empty where nothing is likely.

    The bytes may end within a character. Those of UTF-8, of UTF-16 and of western encodings give an empty list.

    >>> likely_encodings("今天是我们的好日子".encode("gbk")), likely_encodings("Köln".encode("latin-1"))
    (['gb18030'], [])
    """
    if b"\0" in data or _decoded(data, "utf-8") is not None:
        return []
    scores = {name: _score(data, name) for name in _CANDIDATES}
    least = max(1.0, max(scores.values()) / 2)  # by accident a short text is a little like a language
    return sorted((name for name in scores if scores[name] >= least), key=lambda name: -scores[name])


def _score(data: bytes, encoding: str) -> float:
    """The part of the letters beyond ASCII that are common, over the least part; 0 where the bytes do not decode."""
    letters = [
        letter for letter in _decoded(data, encoding) or "" if letter.isalpha() and not letter.isascii()
    ]
    if not letters:
        return 0.0
    common, least = _CANDIDATES[encoding]
    return len(re.findall(common, "".join(letters))) / len(letters) / least


def _decoded(data: bytes, encoding: str) -> str | None:
    """The text, without the character that the bytes break off in; None where they are no text of this encoding."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(data)
    except UnicodeDecodeError:
        return None
