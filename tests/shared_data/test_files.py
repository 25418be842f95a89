"""Files are whole or not there, and refusals of the operating system name cause and remedy."""

import os
from pathlib import Path

import pytest

from shared_data.errors import UserError
from shared_data.files import atomic_write, is_number, read_json, write_json


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"old")

    def write_half() -> None:
        with atomic_write(path) as file:
            file.write(b"half of the new")
            raise RuntimeError("killed in the middle")

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.bin"]


def test_who_reads_the_old_file_meanwhile_reads_it_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"old")
    with open(path, "rb") as reader:
        with atomic_write(path) as file:
            file.write(b"new")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"


def test_the_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    with atomic_write(path, "w") as file:
        file.write("größe\n")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == "größe\n".encode()


def test_a_full_disk_is_a_user_error_that_names_the_path(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def write_to_a_full_disk() -> None:
        with atomic_write(path) as file, open("/dev/full", "wb", buffering=0) as full:
            os.dup2(full.fileno(), file.fileno())
            file.write(b"new")

    with pytest.raises(UserError, match=r"file\.bin: No space left on device; free some space"):
        write_to_a_full_disk()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.bin"]


def test_an_error_about_another_file_inside_the_block_is_not_blamed_on_this_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "file.bin"):
        (tmp_path / "missing").read_bytes()


def test_json_round_trips_and_refuses_nan(tmp_path: Path) -> None:
    value = {"text": "naïve ☃", "lone surrogate": "\ud800", "numbers": [1, 2.5, None]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert read_json(tmp_path / "a.json") == value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing"),
        (b"{1", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"loss": NaN}', "not valid JSON .NaN is no number of JSON.; it is damaged"),
        (b'{"loss": -Infinity}', "not valid JSON"),
        (b"[1]", "holds a list, not a dict; it is damaged"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' stands twice in an object"),
        (b'{"a": ' + b"[" * 101 + b"]" * 101 + b"}", "more than 100 levels of nesting"),
        (b"\xef\xbb\xbf{}", "not valid JSON .*BOM"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "not valid JSON .*digits"),
    ],
)
def test_missing_and_damaged_json_are_user_errors(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_json(path)


def test_a_huge_file_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with open(path, "wb") as file:
        file.truncate(10**12)  # takes no space on the disk
    with pytest.raises(UserError, match="more than 100 MiB"):
        read_json(path)


def test_a_number_is_finite_and_fits_a_float() -> None:
    assert all(map(is_number, (0, -1.5, 10**300, 5e-324)))
    assert not any(map(is_number, (True, None, "1", [1], float("nan"), float("-inf"), 10**400, -(10**400))))
