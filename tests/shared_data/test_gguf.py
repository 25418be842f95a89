"""GGUF files: the header, the types of blocks, and what is damaged or not supported."""

import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize as library_dequantize
from gguf.quants import quantize as library_quantize

from shared_data.errors import UserError
from shared_data.model_files.gguf import NewTensor, read_gguf, write_gguf
from shared_data.model_files.gguf_blocks import BLOCK_TYPES, dequantize, quantize
from tests.gguf_files import blocks


def test_a_block_of_q4_1_read_by_hand() -> None:
    # d = 0.5, m = -1; the lower halves of the sixteen bytes are 0 to 15, the upper ones are all 2.
    block = np.array([0x00, 0x38, 0x00, 0xBC, *(0x20 + i for i in range(16))], np.uint8)
    expected = [0.5 * i - 1 for i in range(16)] + [0.5 * 2 - 1] * 16
    np.testing.assert_array_equal(dequantize(block, "Q4_1"), np.array(expected, np.float32))


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_every_type_is_read_as_the_library_reads_it(name: str) -> None:
    weight = np.random.default_rng(0).standard_normal((70, 512), dtype=np.float32)
    weight[3, :32] = 0  # a block without a scale
    data = blocks(weight, name)
    expected = library_dequantize(data, GGMLQuantizationType[name])
    found = dequantize(data.reshape(-1), name).reshape(weight.shape)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected.reshape(weight.shape))


@pytest.mark.parametrize("name", ["F32", "F16", "Q8_0"])
def test_quantizing_gives_the_bytes_of_the_library(name: str) -> None:
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((64, 96), dtype=np.float32) * np.exp(rng.normal(0, 2, (64, 1))).astype(
        np.float32
    )
    weight[0, :32] = 0
    weight[1, :32] = np.arange(32) / 2  # halves are rounded away from zero
    weight[1, 31] = 127
    expected = library_quantize(weight, GGMLQuantizationType[name]).view(np.uint8)
    np.testing.assert_array_equal(quantize(weight, name), expected.reshape(-1))


def test_an_error_of_q8_0_is_at_most_half_a_step() -> None:
    weight = np.random.default_rng(2).standard_normal((8, 32), dtype=np.float32)
    error = np.abs(dequantize(quantize(weight, "Q8_0"), "Q8_0").reshape(8, 32) - weight)
    step = np.abs(weight).max(axis=1, keepdims=True) / 127
    assert (error <= 0.5 * step + 127 * step * 2**-11 + 1e-7).all()  # the step itself is rounded to float16


@pytest.mark.parametrize("name", ["F16", "Q8_0"])
def test_a_weight_that_is_no_finite_number_is_refused(name: str) -> None:
    for value in (np.nan, 1e9):
        with pytest.raises(UserError, match=rf"not finite, or too large for {name}; "):
            quantize(np.full(32, value, np.float32), name)


ENTRIES = {
    "general.architecture": "llama",
    "a.number": 7,
    "a.float": 0.5,
    "a.flag": True,
    "texts": ["a", "Ġb", "é"],
    "numbers": [3, -1],
    "floats": [0.25, -2.0],
}
MATRIX = np.arange(2 * 96, dtype=np.float32).reshape(2, 96) / 8


def written(path: Path) -> Path:
    """A file with an entry of each kind and two tensors."""
    tensors = {
        "a": NewTensor("F32", (3,), lambda: np.array([1, 2, 3], np.float32)),
        "b": NewTensor("Q8_0", MATRIX.shape, lambda: MATRIX),
    }
    write_gguf(path, ENTRIES, tensors)
    return path


def test_what_is_written_is_read_again_here_and_by_the_library(tmp_path: Path) -> None:
    path = written(tmp_path / "a.gguf")
    file, theirs = read_gguf(path), GGUFReader(path)
    assert file.metadata == ENTRIES == {name: theirs.fields[name].contents() for name in ENTRIES}
    assert {name: tensor.shape for name, tensor in file.tensors.items()} == {"a": (3,), "b": (2, 96)}
    np.testing.assert_array_equal(file.array("a"), [1, 2, 3])
    np.testing.assert_allclose(file.array("b"), MATRIX, atol=0.2)
    for tensor in theirs.tensors:
        expected = library_dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(file.array(tensor.name), expected)


def test_a_file_of_the_library_is_read(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_custom_alignment(64)
    writer.add_array("i8", [1, 2])
    writer.add_uint64("big", 2**40)
    writer.add_int16("small", -5)
    writer.add_tensor("x", np.arange(6, dtype=np.float16).reshape(1, 2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(tmp_path / "a.gguf")
    assert (file.metadata["i8"], file.metadata["big"], file.metadata["small"]) == ([1, 2], 2**40, -5)
    np.testing.assert_array_equal(file.array("x"), np.arange(6).reshape(1, 2, 3))
    assert file.tensors["x"].offset % 64 == 0


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = written(tmp_path / "a.gguf")
    assert read_gguf(path) is read_gguf(path)
    write_gguf(path, {"other": 1}, {})
    assert read_gguf(path).metadata == {"other": 1}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def header(
    entries: bytes = b"", tensors: bytes = b"", counts: tuple[int, int] = (0, 0), version: int = 3
) -> bytes:
    """The beginning of a file; `counts` are those of tensors and entries."""
    return b"GGUF" + struct.pack("<IQQ", version, *counts) + entries + tensors


def entry(kind: int, value: bytes) -> bytes:
    return header(text("key") + struct.pack("<I", kind) + value, counts=(0, 1)) + bytes(64)


def tensor(sizes: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0, room: int = 4096) -> bytes:
    one = text("x") + struct.pack("<I", len(sizes)) + struct.pack(f"<{len(sizes)}Q", *sizes)
    return header(tensors=one + struct.pack("<IQ", kind, offset), counts=(1, 0)) + bytes(room)


HUGE = 2**62
DAMAGED = {
    "empty": (b"", r"it is empty"),
    "short": (b"GG", r"ends too early"),
    "magic": (b"ggml" + bytes(40), r"begins with b'ggml', not with b'GGUF'"),
    "no counts": (b"GGUF" + struct.pack("<I", 3), r"ends too early"),
    "version 1": (header(version=1), r"version 1, and versions 2 and 3 are supported; convert"),
    "version 4": (header(version=4), r"version 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), r"is big-endian.*; download or convert"),
    "many tensors": (header(counts=(HUGE, 0)), rf"promises {HUGE} entries, more than it has room for"),
    "many entries": (header(counts=(0, HUGE)), rf"promises {HUGE} entries"),
    "long key": (header(struct.pack("<Q", HUGE), counts=(0, 1)) + bytes(64), r"ends too early, or a length"),
    "long text": (entry(8, struct.pack("<Q", HUGE)), r"ends too early, or a length"),
    "no UTF-8": (entry(8, struct.pack("<Q", 2) + b"\xff\xfe"), r"is not UTF-8"),
    "unknown entry": (entry(13, b""), r"an entry has the unknown type 13"),
    "long list": (entry(9, struct.pack("<IQ", 4, HUGE)), rf"promises {HUGE} entries"),
    "long list of texts": (entry(9, struct.pack("<IQ", 8, HUGE)), rf"promises {HUGE} entries"),
    "list of lists": (entry(9, struct.pack("<IQ", 9, 1)), r"a list has the type 9"),
    "a name with a line end": (
        header(text("a\nb") + bytes(9), counts=(0, 1)) + bytes(64),
        r"a name in it is 'a\\nb'",
    ),
    "a long name": (header(text("x" * 999) + bytes(9), counts=(0, 1)) + bytes(64), r"a name in it is 'xxx"),
    "two keys": (
        header((text("k") + struct.pack("<IB", 0, 1)) * 2, counts=(0, 2)) + bytes(64),
        r"two entries 'k'",
    ),
    "dimensions": (tensor((1,) * 5), r"tensor 'x' has 5 dimensions"),
    "no dimensions": (tensor(()), r"tensor 'x' has 0 dimensions"),
    "no numbers": (tensor((0,)), r"tensor 'x' of type F32 has the shape \[0\]"),
    "half a block": (tensor((40,), kind=8), r"tensor 'x' of type Q8_0 has the shape \[40\]"),
    "beyond the end": (tensor((1 << 20,)), r"tensor 'x' lies outside"),
    "sizes whose product overflows": (tensor((1 << 33, 1 << 33)), r"tensor 'x' lies outside"),
    "offset beyond the end": (tensor(offset=1 << 20), r"tensor 'x' lies outside"),
    "offset of 64 bits": (tensor(offset=2**64 - 32), r"tensor 'x' lies outside"),
    "not aligned": (tensor(offset=8), r"tensor 'x' .* is not aligned"),
    "unknown type": (tensor(kind=12345), r"type 12345, which is not supported; .*F32, F16, .*Q6_K"),
    "type that is not read": (
        tensor(kind=10),
        r"the type Q2_K, which is not supported; use a file of the types F32",
    ),
    "alignment": (
        header(text("general.alignment") + struct.pack("<II", 4, 24), counts=(0, 1)) + bytes(64),
        r"general.alignment is 24",
    ),
    "one part of several": (
        header(text("split.count") + struct.pack("<IH", 2, 3), counts=(0, 1)) + bytes(64),
        r"one of 3 parts",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_one_line_that_names_it(tmp_path: Path, name: str) -> None:
    content, message = DAMAGED[name]
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_gguf(path)
    assert str(path) in str(caught.value)
    assert re.fullmatch(r"[^\n;]+; [^\n]+", str(caught.value))


def test_a_file_that_ends_anywhere_is_refused(tmp_path: Path) -> None:
    content = written(tmp_path / "a.gguf").read_bytes()
    path = tmp_path / "b.gguf"
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        with pytest.raises(UserError):
            read_gguf(path)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.gguf: No such file or directory; check the path"):
        read_gguf(tmp_path / "a.gguf")


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path) -> None:
    path = written(tmp_path / "a.gguf")
    before = path.read_bytes()

    def fails() -> np.ndarray:
        raise UserError("no numbers; stop")

    broken: dict[str, Callable[[], np.ndarray]] = {"a": fails}
    with pytest.raises(UserError, match="no numbers"):
        write_gguf(path, {}, {name: NewTensor("F32", (3,), numbers) for name, numbers in broken.items()})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.gguf"]
