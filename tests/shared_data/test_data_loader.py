"""Packed documents: every token predicted exactly once an epoch, documents kept apart, damaged files refused."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared_data.errors import UserError
from shared_data.training.data_loader import PackedDocuments

END = 0  # the id of <|endoftext|> in these files


def write_tokens(folder: Path, tokens: np.ndarray, **facts: Any) -> Path:
    """A token file with its description, as the stage `tokenizer` writes them."""
    folder.mkdir(exist_ok=True)
    path = folder / "train.bin"
    tokens.astype(np.uint16).tofile(path)
    described = {"dtype": "uint16", "tokens": len(tokens), "bytes": 3 * len(tokens), "vocab_size": 97}
    path.with_suffix(".json").write_text(json.dumps(described | facts))
    return path


def documents(seed: int, count: int, vocab_size: int = 97) -> np.ndarray:
    """Documents of 0 to 40 tokens, each closed by END, end to end; a next token is one of three, so there is something to learn."""
    rng = np.random.default_rng(seed)
    stream: list[int] = []
    for _ in range(count):
        token = int(rng.integers(1, vocab_size))
        for _ in range(int(rng.integers(0, 40))):
            stream.append(token)
            token = 1 + (token * 7 + int(rng.integers(0, 3))) % (vocab_size - 1)
        stream.append(END)
    return np.array(stream)


def loader(path: Path, batch_size: int = 4, length: int = 32, **options: Any) -> PackedDocuments:
    return PackedDocuments(path, batch_size, length, END, **{"seed": 3, **options})


def test_a_document_begins_at_the_end_of_text_before_it(tmp_path: Path) -> None:
    stream = np.array([5, 6, END, 7, END, END, 8, 9, 10])
    batch = next(loader(write_tokens(tmp_path, stream), 1, 8).one_pass())
    assert batch.input_ids[0].tolist() == [END, 5, 6, END, 7, END, END, 8]
    assert batch.labels[0].tolist() == [5, 6, END, 7, END, END, 8, 9]
    assert batch.position_ids[0].tolist() == [0, 1, 2, 0, 1, 0, 0, 1]
    assert batch.document_ids[0].tolist() == [0, 0, 0, 1, 1, 2, 3, 3]


@pytest.mark.parametrize("size", [64, 65, 95, 96, 500])
def test_each_token_is_predicted_exactly_once_an_epoch(size: int, tmp_path: Path) -> None:
    each = loader(write_tokens(tmp_path, np.arange(1, size + 1)), batch_size=1)
    predicted: Counter[int] = Counter()
    for _ in range(each.num_sequences):
        batch = each.next_batch()
        counted = batch.labels != -100
        predicted.update(batch.labels[counted].tolist())
        first = (batch.input_ids == END) & counted  # the very first token follows the added end-of-text
        np.testing.assert_array_equal(batch.labels[counted & ~first], batch.input_ids[counted & ~first] + 1)
        assert set(batch.labels[first].tolist()) <= {1}
    assert predicted == Counter(range(1, size + 1))
    assert each.order.state_dict()["epoch"] == 0


def test_the_tail_of_the_file_is_padded_with_labels_that_do_not_count(tmp_path: Path) -> None:
    tail = next(loader(write_tokens(tmp_path, np.arange(1, 12)), 2, 8).one_pass())
    assert tail.labels[1].tolist() == [9, 10, 11, *[-100] * 5]
    assert tail.num_items == 11
    padding = set(tail.document_ids[1][4:].tolist()) - set(tail.document_ids[1][:3].tolist())
    assert len(padding) == 4, "padding must not be attended to"


def test_training_is_shuffled_and_a_pass_for_evaluation_is_not(tmp_path: Path) -> None:
    each = loader(write_tokens(tmp_path, np.arange(1, 321)), batch_size=10)
    ordered = list(range(1, 321, 32))
    (whole,) = each.one_pass()
    first, second = (each.next_batch().labels[:, 0].tolist() for _ in range(2))
    assert whole.labels[:, 0].tolist() == sorted(first) == sorted(second) == ordered
    assert ordered != first != second
    before = each.order.state_dict()
    assert [len(batch.labels) for batch in loader(tmp_path / "train.bin", 4).one_pass()] == [4, 4, 2]
    assert len(list(each.one_pass(max_batches=0))) == 0
    assert each.order.state_dict() == before


def test_bad_token_files_are_user_errors(tmp_path: Path) -> None:
    for tokens in (np.arange(1, 32), np.array([])):
        with pytest.raises(UserError, match="less than one sequence of 32"):
            loader(write_tokens(tmp_path, tokens))
    path = write_tokens(tmp_path, np.arange(1, 100))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="damaged"):
        loader(path)
    path.unlink()
    with pytest.raises(UserError, match="no token file"):
        loader(path)
    with pytest.raises(UserError, match="run the stage `tokenizer` first"):
        loader(tmp_path / "absent.bin")
