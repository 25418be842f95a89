"""The encoding that a file may have which is not UTF-8: named for the languages of East Asia, and for no other."""

import pytest

from shared_data.corpus.encodings import likely_encodings
from tests.real_files.made_texts import made_text

TRADITIONAL = (
    "在這個村子裡，老漁夫發現了一隻受傷的鳥，心裡非常高興，卻沒有告訴任何人，因為天快要黑了。大家都圍過來看。"
)
RUSSIAN = "Все люди рождаются свободными и равными в своем достоинстве и правах."
FRENCH = "Élève à l’école où naïve garçon déjà été — “voilà” café très élégant, œuvre"


@pytest.mark.parametrize("length", [60, 400, 2000])
@pytest.mark.parametrize(
    ("code", "encoding", "expected"),
    [
        ("zh", "gbk", "gb18030"),
        ("zh", "gb18030", "gb18030"),
        ("ja", "shift_jis", "shift_jis"),
        ("ja", "euc_jp", "euc_jp"),
        ("ko", "euc_kr", "euc_kr"),
    ],
)
def test_the_encodings_of_east_asia_are_told_apart(
    code: str, encoding: str, expected: str, length: int
) -> None:
    for seed in range(5):
        data = made_text(code, seed, length).encode(encoding)
        assert likely_encodings(data)[0] == expected
        assert len(likely_encodings(data)) == 1 or length == 60, "a short text may look like two"
        assert likely_encodings(b"<p>Title: 12</p>\r\n" + data[:-1])[0] == expected, "cut within a character"


def test_traditional_chinese_is_big5() -> None:
    assert likely_encodings(TRADITIONAL.encode("big5")) == ["big5"]


@pytest.mark.parametrize(
    "data",
    [
        made_text("zh", 0).encode(),
        made_text("zh", 0).encode("utf-16"),
        made_text("th", 0).encode("tis-620"),
        *(RUSSIAN.encode(encoding) for encoding in ("cp1251", "koi8-r", "iso8859-5")),
        RUSSIAN.upper().encode("cp1251"),
        FRENCH.encode("cp1252"),
        "Größe, schöne Grüße".encode("latin-1"),
        "Όλοι οι άνθρωποι".encode("iso8859-7"),
        bytes(range(1, 256)),
        b"\xff\xfe\x80",
        b"",
    ],
)
def test_nothing_is_guessed_of_other_bytes(data: bytes) -> None:
    assert likely_encodings(data) == []
