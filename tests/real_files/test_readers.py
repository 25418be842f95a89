"""Files as they are found: what each reader of levels 1 and of 2 and 3 must give, and that hostile ones take no time and no memory."""

import gzip
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pyarrow.parquet
import pytest

from shared_data.corpus import readers, text_units
from shared_data.corpus.bad_records import BadRecords
from shared_data.corpus.readers import read_documents, read_records
from shared_data.corpus.text_units import split_at
from shared_data.errors import UserError
from shared_data.settings import DataSettings
from v1_quick.data_pipeline.download.open_corpus import read_documents as read_documents1

LEVELS: dict[str, Callable[..., Any]] = {"v1": read_documents1, "v2": read_documents}


def table(*texts: str | None) -> bytes:
    """A parquet file with a column `text`."""
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"n": list(range(len(texts))), "text": list(texts)}), file)
    return file.getvalue()


# The name of a file, its bytes, and its texts.
FILES: list[tuple[str, bytes, list[str]]] = [
    # What looks like another type, or like nothing, is text.
    (
        "words.csv",
        b"n,text\n1,NA\n2,None\n3,null\n4,007\n5,2024-05-01\n6,1e5\n7,True\n8,nan\n9,\n10,N/A\n11,-inf\n",
        ["NA", "None", "null", "007", "2024-05-01", "1e5", "True", "nan", "N/A", "-inf"],
    ),
    ("numbers.csv", b"text\n007\n008\n", ["007", "008"]),
    ("dates.csv", b"text\n2024-05-01\n2024-05-02\n", ["2024-05-01", "2024-05-02"]),
    ("flags.csv", b"text\nTrue\nFalse\n", ["True", "False"]),
    ("dates.jsonl", b'{"text": "2024-05-01"}\n{"text": "2024-05-02"}\n', ["2024-05-01", "2024-05-02"]),
    ("dates.json", b'[{"text": "2024-05-01 10:00:00"}]', ["2024-05-01 10:00:00"]),
    ("dates.parquet", table("2024-05-01", "007", "NA"), ["2024-05-01", "007", "NA"]),
    # Byte order marks.
    ("mark.txt", b"\xef\xbb\xbfhello", ["hello"]),
    ("mark.csv", b'\xef\xbb\xbf"text",n\nhello,1\n', ["hello"]),
    ("mark.jsonl", b'\xef\xbb\xbf{"text": "a"}\n', ["a"]),
    ("marks.jsonl", b'{"text": "a"}\n\xef\xbb\xbf{"text": "b"}\n', ["a", "b"]),
    ("mark.json", b'\xef\xbb\xbf[{"text": "a"}]', ["a"]),
    # Line ends: each becomes \n, whatever stands in the file.
    ("ends.txt", b"one\rtwo\r\nthree\n", ["one\ntwo\nthree"]),
    ("ends.csv", b'text,n\r\n"a\r\nb",1\r\nc,2\r\n', ["a\nb", "c"]),
    ("mac.csv", b"text,n\ra,1\rb,2\r", ["a", "b"]),
    ("ends.jsonl", b'{"text": "a\\r\\nb\\rc"}\r\n{"text": "d"}\r\n', ["a\nb\nc", "d"]),
    ("ends.parquet", table("a\r\nb"), ["a\nb"]),
    ("other-ends.txt", "a\u2028b\x0bc\x85d\x1ee".encode(), ["a\u2028b\x0bc\x85d\x1ee"]),
    ("other-ends.jsonl", '{"text": "a\u2028b\x85c"}\n'.encode(), ["a\u2028b\x85c"]),
    # Quotes, spaces and columns of CSV.
    ("quotes.csv", b'text,n\n"say ""hi"", now",1\n', ['say "hi", now']),
    ("behind.csv", b'text,n\n"a"b,1\n', ["ab"]),
    ("inside.csv", b'text,n\na "b" c,1\n', ['a "b" c']),
    ("spaces.csv", b"text\n  spaces  \n", ["  spaces  "]),
    ("short.csv", b"text,n\na\nb,2\n", ["a", "b"]),
    ("blank.csv", b"text,n\n\na,1\n\n", ["a"]),
    ("twice.csv", b"text,text\na,b\n", ["a"]),
    # Nulls, missing and extra fields, mixed types elsewhere in the record.
    ("null.jsonl", b'{"text": null}\n{"text": "b", "extra": null}\n', ["b"]),
    ("null.parquet", table(None, "b", ""), ["b"]),
    ("empty.jsonl", b'{"text": ""}\n\n{"text": " "}\n{"text": "x"}\n', ["x"]),
    ("mixed.jsonl", b'{"text": "a", "n": 1}\n{"text": "b", "n": {"a": []}}\n', ["a", "b"]),
    ("numbers.jsonl", b'{"text": "a", "n": 123456789012345678901234567890, "m": NaN}\n', ["a"]),
    ("twice.jsonl", b'{"text": "a", "text": "b"}\n', ["b"]),
    ("strings.json", b'["a", "b"]', ["a", "b"]),
    ("values.json", b'{"text": "a"} {"text": "b"}', ["a", "b"]),
    # Characters.
    ("half.jsonl", b'{"text": "a \\ud83d b"}\n', ["a \ufffd b"]),
    ("pair.json", b'[{"text": "a \\ud83d\\ude00 b"}]', ["a 😀 b"]),
    ("zero.jsonl", b'{"text": "a\\u0000b"}\n', ["a\0b"]),
    ("packed.csv.gz", gzip.compress(b"text\nNA\n"), ["NA"]),
]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("name", "content", "texts"), FILES, ids=[name for name, _, _ in FILES])
def test_the_same_bytes_are_the_same_texts_at_every_level(
    name: str, content: bytes, texts: list[str], level: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for policy in ("stop", "skip"):
        settings = DataSettings(on_bad_record=policy)
        assert [document.text for document in LEVELS[level](path, settings, True)] == texts


@pytest.mark.parametrize("level", LEVELS)
def test_a_malformed_line_of_a_csv_is_skipped_and_named(level: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(f'text,n\n"a, b",1\nc, d,2\n{"long" * 50_000},3\n\n"e\nf",4\ng,h,i,j\nNA,5\n')
    bad, settings = BadRecords("skip"), DataSettings(on_bad_record="skip")
    texts = [document.text for document in LEVELS[level](path, settings, True, bad)]
    assert texts == ["a, b", "long" * 50_000, "e\nf", "NA"]
    assert (bad.read, bad.skipped) == (6, 2)
    assert all("more fields than the first line names" in fault for fault in bad.first)


@pytest.mark.parametrize(("name", "content"), [(name, content) for name, content, _ in FILES if name.endswith(".csv")])  # fmt: skip
def test_a_csv_is_what_pandas_reads_without_guessing(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    expected = pandas.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
    found = [
        {key: value or "" for key, value in record.items() if key is not None}
        for _, record in read_records(path)
    ]
    assert found == [
        {key: str(value).replace("\r\n", "\n") for key, value in row.items()} for row in expected
    ]


# What every level refuses, with what the line says.
REFUSED: list[tuple[str, bytes, str]] = [
    ("more.csv", b"text,id\nA,hello,1\nB,world,2\n", "line 2 has more fields than the first line names"),
    ("zero.txt", b"a\0b", "looks binary"),
    ("zero.csv", b"text\na\0b\n", "looks binary"),
]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("name", "content", "says"), REFUSED, ids=[name for name, _, _ in REFUSED])
def test_the_same_bytes_are_refused_at_every_level(
    name: str, content: bytes, says: str, level: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=says):
        list(LEVELS[level](path, DataSettings(), True))


@pytest.mark.parametrize("level", LEVELS)
def test_a_name_is_no_pattern(level: str, tmp_path: Path) -> None:
    (tmp_path / "a[1]").mkdir()
    for name, text in (("a1.txt", "other"), ("a[1].txt", "this"), ("a[1]/b?.txt", "that")):
        (tmp_path / name).write_text(text)
        assert [document.text for document in LEVELS[level](tmp_path / name, DataSettings(), True)] == [text]


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (pyarrow.array([2**61], pyarrow.timestamp("us")), "has a value that Python cannot hold"),
        (pyarrow.array([0], pyarrow.timestamp("us", tz="Foo/Bar")), "has a value that Python cannot hold"),
    ],
)
def test_a_date_of_parquet_that_is_none_of_python_is_one_line(column: Any, says: str, tmp_path: Path) -> None:
    path = tmp_path / "dates.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "time": column}), path)
    with pytest.raises(UserError, match=rf"dates\.parquet {says}"):
        list(read_records(path))
    assert [document.text for document in read_documents(path, DataSettings(), True)] == ["a"]


def test_columns_of_one_name_lose_nothing_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "twice.parquet"
    columns = [pyarrow.array(["x"]), pyarrow.array(["y"])]
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, names=["text", "text"]), path)
    with pytest.raises(UserError, match="has several columns 'text'; rename them"):
        list(read_records(path))
    path = tmp_path / "twice.csv"
    path.write_text("text,text,text.1\na,b,c\n")
    assert [record for _, record in read_records(path)] == pandas.read_csv(path).to_dict("records")


def test_a_document_longer_than_a_record_may_be_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(text_units, "LONGEST_RECORD", 1_000)
    path = tmp_path / "one.txt"
    path.write_text("a<|endoftext|>" + "word " * 100_000)
    for unit in ("auto", "line"):
        with pytest.raises(UserError, match="a record of more than 1,000 characters"):
            list(read_documents(path, DataSettings(text_unit=unit), True))


@pytest.mark.parametrize("policy", ["stop", "skip"])
@pytest.mark.parametrize("level", LEVELS)
def test_a_quote_that_is_never_closed_does_not_swallow_the_file(
    level: str, policy: Any, tmp_path: Path
) -> None:
    path = tmp_path / "open.csv"
    path.write_text('text,n\na,1\n"b,2\nc,3\n')
    with pytest.raises(UserError, match=r"open\.csv") as caught:
        list(LEVELS[level](path, DataSettings(on_bad_record=policy), True))
    if level == "v2":
        assert "opens in the record of line 3 is not closed; correct" in str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "lines.csv", "a.txt"])
def test_the_time_for_one_long_record_is_linear(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that begins the record again with each of 32,768 small blocks copies 130 GB; read once, it is half a second."""
    monkeypatch.setattr(readers, "BLOCK", 256)
    text, path = "word " * 1_600_000, tmp_path / name
    contents = {
        "a.jsonl": json.dumps({"text": text}),
        "a.json": json.dumps([{"text": text}]),
        "a.csv": f'n,text\n1,"{text}"\n',
        "lines.csv": 'n,text\n1,"' + text.replace("d w", "d\nw") + '"\n',
        "a.txt": text,
    }
    path.write_text(contents[name])
    started = time.perf_counter()
    found = sum(len(document.text) for document in read_documents(path, DataSettings(text_unit="file"), True))
    assert time.perf_counter() - started < 4
    assert found in (len(text), len(text) - 1)  # a document has no space at its end


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.csv.gz"])
def test_a_record_without_end_is_refused_before_it_fills_the_memory(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    begin = {"a.jsonl.gz": b'{"text": "', "a.json.gz": b'[{"text": "', "a.csv.gz": b'text\n"'}[name]
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(begin)
        for _ in range(101):
            file.write(b"x" * 1_000_000)
    started = time.perf_counter()
    with pytest.raises(
        UserError, match=r"a record of more than 100,000,000 characters; cut it|is no valid CSV"
    ):
        list(read_documents(path, DataSettings(), True))
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize("separator", ["|", "<|endoftext|>"])
@pytest.mark.parametrize("size", [1, 2, 5, 12, 13, 14, 1000])
def test_pieces_are_those_of_split_whatever_the_size_of_the_chunks(separator: str, size: int) -> None:
    text = separator.join(["", "one", "two" * 20, "", "<|end", "|", "x"]) + separator[:-1]
    chunks = [text[i : i + size] for i in range(0, len(text), size)]
    assert list(split_at(chunks, separator)) == text.split(separator)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["a.txt", "a.csv"])
def test_the_hint_for_a_chinese_file_names_its_encoding(name: str, level: str, tmp_path: Path) -> None:
    path, text = tmp_path / name, "text\n" + "今天是我们的好日子，他们都来了。\n" * 20
    path.write_bytes(text.encode("gbk"))
    with pytest.raises(UserError, match=r"it looks like gb18030: set data\.encoding=gb18030"):
        list(LEVELS[level](path, DataSettings(), True))
    found = list(LEVELS[level](path, DataSettings(encoding="gb18030"), True))
    assert "今天是我们的好日子" in found[0].text
