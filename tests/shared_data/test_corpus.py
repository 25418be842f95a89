"""Opening a corpus: the same documents from every format, by hand and by `datasets`, and a line for every fault."""

import csv
import gzip
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pyarrow
import pyarrow.parquet
import pytest

from shared_data.corpus import text_units
from shared_data.corpus.conversations import read_conversations
from shared_data.corpus.hub import hub_documents
from shared_data.corpus.open_corpus import open_corpus
from shared_data.corpus.readers import read_documents
from shared_data.corpus.records import open_records
from shared_data.errors import UserError
from shared_data.settings import DataSettings
from v1_quick.data_pipeline.download import open_corpus as v1

READERS = {"by hand": (read_documents, hub_documents), "datasets": (v1.read_documents, v1.hub_documents)}
TEXTS = ["First text,\nof two lines.", 'Second: "quoted", café 日本 😀', "Third — the last."]


def open_texts(source: Path | str, readers: str = "by hand", **settings: Any) -> list[str]:
    """The texts of a corpus."""
    documents = open_corpus(DataSettings(source=str(source), **settings), None, *READERS[readers])
    return [document.text for document in documents]


def write_corpus(folder: Path, name: str, texts: list[str], field: str = "text") -> Path:
    """A file in the format that its name asks for."""
    path = folder / name
    plain = name.removesuffix(".gz")
    plain_path = folder / plain
    records = [{"number": number, field: text} for number, text in enumerate(texts)]
    if plain.endswith(".jsonl"):
        plain_path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    elif plain.endswith(".json"):
        plain_path.write_text(json.dumps(records, ensure_ascii=False, indent=1), encoding="utf-8")
    elif plain.endswith(".csv"):
        with open(plain_path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["number", field])
            writer.writeheader()
            writer.writerows(records)
    elif plain.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), plain_path)
    else:
        plain_path.write_text("<|endoftext|>".join(texts), encoding="utf-8")
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(plain_path.read_bytes()))
        plain_path.unlink()
    return path


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("kind", ["txt", "jsonl", "json", "csv", "parquet"])
def test_every_format_gives_the_same_documents(tmp_path: Path, kind: str, packed: str) -> None:
    path = write_corpus(tmp_path, f"corpus.{kind}{packed}", TEXTS, field="story")
    for readers in READERS:
        if readers == "by hand" or f"{kind}{packed}" != "parquet.gz":  # datasets has no packed parquet
            assert open_texts(path, readers, text_field="story") == TEXTS


@pytest.mark.parametrize("readers", READERS)
def test_a_folder_or_a_glob_gives_its_files_in_order(tmp_path: Path, readers: str) -> None:
    (tmp_path / "deep").mkdir()
    for name, text in (
        ("b.txt", "second"),
        ("deep/c.txt", "third"),
        ("a.jsonl", "first"),
        (".hidden.txt", "no"),
    ):
        write_corpus(tmp_path, name, [text])
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    assert open_texts(tmp_path, readers) == ["first", "second", "third"]
    assert open_texts(tmp_path / "*.txt", readers) == ["second"]
    (tmp_path / ".cache").mkdir()
    write_corpus(tmp_path, ".cache/d.txt", ["in a hidden folder"])
    assert open_texts(tmp_path, readers) == ["first", "second", "third"]
    assert open_texts(tmp_path / ".cache", readers) == ["in a hidden folder"], (
        "but it may be the one that is asked for"
    )
    assert open_texts(tmp_path / "**" / "*.txt", readers) == ["second", "third"]


def test_json_may_be_one_object_or_several_and_larger_than_a_block(tmp_path: Path) -> None:
    path = tmp_path / "corpus.json"
    texts = ["x" * 200_000, 'y[]{},\\"', "z"]
    for text in (
        "\n".join(json.dumps({"text": text}, indent=2) for text in texts),
        json.dumps([{"text": text} for text in texts]),
        json.dumps([{"text": text} for text in texts], indent=2) + " \n" * 100_000,
    ):
        path.write_text(text)
        assert open_texts(path) == texts


def test_empty_fields_at_the_end_of_a_csv_line_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "corpus.csv").write_text('text\nfirst,,\n"second, quoted"\n')
    assert open_texts(tmp_path / "corpus.csv") == ["first", "second, quoted"]


@pytest.mark.parametrize("readers", READERS)
def test_the_stream_ends_at_the_size_limit(tmp_path: Path, readers: str) -> None:
    path = write_corpus(tmp_path, "corpus.jsonl", ["0123456789"] * 100)
    assert len(open_texts(path, readers, max_megabytes=95e-6)) == 10


# --- Plain text -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("readers", READERS)
def test_a_large_single_text_is_cut_at_paragraphs_and_nothing_is_lost(tmp_path: Path, readers: str) -> None:
    paragraphs = [f"Paragraph {number}.\nIt says: " + "word " * (number % 90) for number in range(400)]
    path = tmp_path / "book.txt"
    path.write_bytes("\r\n\r\n".join(paragraphs).replace("\n", "\r\n").replace("\r\r", "\r").encode())
    texts = open_texts(path, readers)
    assert "\n\n".join(texts).split() == "\n\n".join(paragraphs).split()
    assert len(texts) > 20
    assert all(text.startswith("Paragraph") for text in texts)
    assert all(text_units.GROUP <= len(text) < 3 * text_units.GROUP for text in texts[:-1])


@pytest.mark.parametrize("cut", range(1, 9))
def test_the_size_of_chunks_does_not_matter(cut: int) -> None:
    text = "a\n\nb" * 700 + "<|endoftext|>" + "no line " * 9000 + "x" * 70_000
    chunks = [text[i : i + cut * 1000 + cut] for i in range(0, len(text), cut * 1000 + cut)]
    for unit in ("auto", "file", "line", "paragraphs"):
        whole = list(text_units.split_text([text], unit, True))
        assert list(text_units.split_text(chunks, unit, True)) == whole
        assert "".join("".join(whole).split()) == "".join(
            (text.replace("<|endoftext|>", "") if unit == "auto" else text).split()
        )
    assert max(map(len, text_units.split_text(chunks, "paragraphs", True))) <= text_units.LONGEST_GROUP


def test_the_unit_of_text_follows_the_corpus_and_the_setting(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\nthree")
    (tmp_path / "b.txt").write_text("four\n\nfive")
    assert open_texts(tmp_path) == ["one\n\ntwo\n\nthree", "four\n\nfive"]
    assert open_texts(tmp_path, text_unit="line") == ["one", "two", "three", "four", "five"]
    (tmp_path / "b.txt").write_text("four\n<|endoftext|>\nfive")
    assert open_texts(tmp_path / "b.txt") == ["four", "five"]
    assert open_texts(tmp_path / "b.txt", text_unit="file") == ["four\n<|endoftext|>\nfive"]


# --- Faults -----------------------------------------------------------------------------------------------------------


def faulty_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files with a fault each, and what the message must name."""
    whole = write_corpus(folder, "whole.jsonl.gz", [os.urandom(40).hex() for _ in range(5000)]).read_bytes()
    table = write_corpus(folder, "whole.parquet", TEXTS * 100).read_bytes()
    contents: dict[str, tuple[bytes, str]] = {
        "empty.txt": (b"", "holds no text"),
        "blank.jsonl": (b"\n \n", "holds no text"),
        "binary.txt": (b"text and\0then", "looks binary"),
        "picture.txt": (b"\x89PNG\r\n\x1a\n\x00", "looks binary"),
        "latin.txt": (("x" * 70_000 + "é la carte").encode("latin-1"), "near byte 70,000"),
        "malformed.jsonl": (b'{"text": "a"}\n\n{"text": "b"\n{"text": "c"}\n', "line 3 is not valid JSON"),
        "list.jsonl": (b'{"text": "a"}\n[1, 2]\n', "line 2 is a list"),
        "field.jsonl": (b'{"text": "a"}\n{"story": "b"}\n', "line 2 has no field 'text'"),
        "number.jsonl": (b'{"text": 3}\n', "holds a int, not text"),
        "malformed.json": (
            b'[{"text": "a"}, {"text" "b"}, {"text": "c"}]' + b" " * 100,
            "record 2 is not valid JSON",
        ),
        "digits.jsonl": (b'{"text": "a"}\n{"text": ' + b"1" * 5000 + b"}\n", "line 2 is not valid JSON"),
        "digits.json": (b'[{"text": "a"}, {"text": ' + b"1" * 5000 + b"}]", "record 2 is not valid JSON"),
        "cut.json": (b'[{"text": "a"}, {"text": "b', "record 2 is cut off"),
        "cut-values.json": (b'{"text": "a"}\n{"text": "b', "record 2 is cut off"),
        "trailing.json": (b'[{"text": "a"}] and more', "goes on after its array of 1 records"),
        "late.json": (b'[{"text": "a"}]' + b" " * 100_000 + b'{"text": "b"}', "goes on after its array"),
        "commas.json": (b'[{"text": "a"},, {"text": "b"}]', "record 2 is not valid JSON"),
        "comma-first.json": (b'[, {"text": "a"}, {"text": "b"}]', "record 1 is not valid JSON"),
        "comma-last.json": (b'[{"text": "a"}, {"text": "b"},]', "record 3 is"),
        "no-comma.json": (b'[{"text": "a"} {"text": "b"}]', "has no comma after record 1"),
        "open.json": (b'[{"text": "a"}, {"text": "b"}', "record 3 is cut off"),
        "fields.csv": (b"number,text\n1,hello\n2,hello, you\n", "line 3 has more fields than the first line"),
        "field.csv": (b"number,story\n1,hello\n", "has no field 'text'"),
        "cut.jsonl.gz": (whole[: len(whole) // 2], "truncated or damaged gzip"),
        "not.jsonl.gz": (b"plain text", "truncated or damaged gzip"),
        "cut.parquet": (table[: len(table) // 2], "not a whole parquet file"),
        "not.parquet": (b"plain text, long enough", "not a whole parquet file"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    cases = {name: (folder / name, expected) for name, (_, expected) in contents.items()}
    cases["missing.txt"] = (folder / "missing.txt", "does not exist")
    field = write_corpus(folder, "field.parquet", TEXTS, field="story")
    cases["field.parquet"] = (
        field,
        "has no field 'text'; set data.text_field to one it has: 'number', 'story'",
    )
    # pyarrow takes the bytes of a text column on trust, when it writes and when it reads.
    latin = pyarrow.array([b"caf\xe9"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": latin}), folder / "latin.parquet")
    cases["latin.parquet"] = (folder / "latin.parquet", "holds text that is not UTF-8")
    cases["nobody"] = (Path("~nobody-at-all/nobody.txt"), "does not exist")
    (folder / "nothing").mkdir()
    cases["folder without text"] = (folder / "nothing", "holds no file that ends in .txt")
    return cases


@pytest.mark.parametrize("readers", READERS)
def test_every_fault_is_one_line_with_cause_and_remedy(tmp_path: Path, readers: str) -> None:
    for name, (path, expected) in faulty_files(tmp_path).items():
        if readers == "datasets" and name in ("binary.txt", "field.jsonl"):
            continue  # datasets reads a zero byte as text (ftfy removes it), and a missing field as null
        with pytest.raises(UserError) as caught:
            open_texts(path, readers)
        message = str(caught.value)
        assert "\n" not in message
        assert ";" in message, "no remedy"
        assert path.name in message, "the file is not named"
        if readers != "datasets":
            assert expected in message, name


@pytest.mark.parametrize("readers", READERS)
def test_half_a_character_in_json_becomes_the_replacement_character(tmp_path: Path, readers: str) -> None:
    """`"\\ud83d"` alone is half of an emoji: valid JSON, and no Unicode text."""
    record = '{"text": "half \\ud83d a pair \\uD83D\\ude00", "messages": [{"role": "user", "content": "\\udc00?"}]}'
    for name in ("broken.jsonl", "broken.json"):
        (tmp_path / name).write_text(record + "\n")
        assert open_texts(tmp_path / name, readers) == ["half \ufffd a pair 😀"]
        _, found = next(open_records(DataSettings(), str(tmp_path / name)))
        assert found["messages"][0]["content"] == "\ufffd?"


def test_conversations_of_all_forms_are_read_from_one_file(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
        '{"prompt": "a", "completion": "b"}\n'
        '{"instruction": "a", "output": "b"}\n'
    )
    read = list(read_conversations(DataSettings(), str(path)))
    assert [each.where for each in read] == [f"{path}, line {number}" for number in (1, 2, 3)]
    expected = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert [each.messages for each in read] == [expected] * 3


def test_a_file_name_without_a_utf8_form_still_names_its_documents(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.txt")
    path.write_text("text")
    (document,) = open_corpus(DataSettings(source=str(path)))
    assert document.id.encode().endswith(b"caf?.txt#0")


def test_the_encoding_is_a_setting(tmp_path: Path) -> None:
    for encoding in ("latin-1", "utf-16", "utf-8-sig"):
        path = tmp_path / f"{encoding}.txt"
        path.write_text("café\n", encoding=encoding)
        used = "utf-8" if encoding == "utf-8-sig" else encoding
        assert open_texts(path, encoding=used) == ["café"]


# --- The hub ----------------------------------------------------------------------------------------------------------


class FakeHub(BaseHTTPRequestHandler):
    """Answers as huggingface.co does, for small files; `drop_after` breaks connections off."""

    files: ClassVar[dict[str, bytes]] = {}
    drop_after: int | None = None
    requests: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        type(self).requests.append((self.path, self.headers.get("Range")))
        status = {"/api/datasets/a/private/parquet": 401, "/api/datasets/a/broken/parquet": 500}.get(
            self.path, 404
        )
        content = self.files.get(self.path)
        if content is None:
            self.send_error(status)
            return
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        limit = type(self).drop_after
        self.wfile.write(content[start : None if limit is None else start + limit])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """A hub with one dataset of two files."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    address = f"http://127.0.0.1:{server.server_port}"
    parts = [
        write_corpus(tmp_path, f"{n}.parquet", [f"text {n}-{i} " + "x" * 5000 for i in range(40)])
        for n in (0, 1)
    ]
    paths = [f"/api/datasets/a/b/parquet/default/train/{n}.parquet" for n in (0, 1)]
    listing = {
        "default": {"train": [address + path for path in paths]},
        "big": {"partial-train": [address + paths[1]]},
    }
    FakeHub.files = {
        "/api/datasets/a/b/parquet": json.dumps(listing).encode(),
        "/api/datasets/a/list/parquet": b"[]",
        **{path: part.read_bytes() for path, part in zip(paths, parts, strict=True)},
    }
    FakeHub.drop_after, FakeHub.requests = None, []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield address
    server.shutdown()
    server.server_close()


def test_a_hub_dataset_is_downloaded_once_and_only_as_far_as_needed(hub: str, tmp_path: Path) -> None:
    options = {"hub_endpoint": hub, "hub_cache": str(tmp_path / "cache")}
    assert len(open_texts("a/b", **options, max_megabytes=0.02)) == 4
    assert [path for path, _ in FakeHub.requests if path.endswith("1.parquet")] == []
    texts = open_texts("a/b", **options)
    assert [text.split()[1] for text in texts] == [f"{n}-{i}" for n in (0, 1) for i in range(40)]
    assert open_texts("a/b", **options) == texts
    assert sum(path.endswith(".parquet") for path, _ in FakeHub.requests) == 2, "a file was fetched twice"
    assert len(open_texts("a/b", hub_config="big", **options)) == 40, (
        "the first 5 GB are called partial-train"
    )


def test_a_broken_download_continues_where_it_stopped(hub: str, tmp_path: Path) -> None:
    options = {"hub_endpoint": hub, "hub_cache": str(tmp_path / "cache")}
    size = max(len(content) for content in FakeHub.files.values())
    FakeHub.drop_after = size // 10
    with pytest.raises(UserError, match=r"broke off.*start again"):
        open_texts("a/b", **options)
    assert not list(tmp_path.glob("cache/**/*.parquet")), "half a file under its final name"
    FakeHub.requests.clear()
    FakeHub.drop_after = None
    assert len(open_texts("a/b", **options)) == 80
    first = next(part_range for path, part_range in FakeHub.requests if path.endswith("0.parquet"))
    assert first is not None
    assert int(first.removeprefix("bytes=").removesuffix("-")) >= 4 * (size // 10) - 4


def test_a_download_killed_before_its_last_rename_is_made_again(hub: str, tmp_path: Path) -> None:
    options = {"hub_endpoint": hub, "hub_cache": str(tmp_path / "cache")}
    texts = open_texts("a/b", **options)
    for whole in tmp_path.glob("cache/**/*.parquet"):
        whole.rename(whole.with_suffix(".parquet.part"))
    assert open_texts("a/b", **options) == texts


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("a/list", {}, "did not answer with a list of files"),
        ("a/b", {"hub_endpoint": "hub.example"}, r"no address.*correct data\.hub_endpoint"),
        ("a/missing", {}, "not found"),
        ("a/private", {}, "private or gated"),
        ("a/broken", {}, "HTTP 500"),
        ("a/b", {"hub_config": "other"}, "default, big"),
        ("a/b", {"hub_split": "test"}, "set data.hub_split to one of train"),
    ],
)
def test_what_the_hub_refuses_is_explained(
    hub: str, tmp_path: Path, name: str, settings: dict, expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        open_texts(name, **{"hub_endpoint": hub, "hub_cache": str(tmp_path / "cache")} | settings)


@pytest.mark.parametrize("readers", READERS)
def test_without_a_connection_the_remedy_is_a_local_file(tmp_path: Path, readers: str) -> None:
    with pytest.raises(UserError, match=r"set data\.source to a local file"):
        open_texts("a/b", readers, hub_endpoint="http://127.0.0.1:9", hub_cache=str(tmp_path))
