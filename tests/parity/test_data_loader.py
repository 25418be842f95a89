"""The packed loader: the same batches at all levels, every token predicted exactly once an epoch, exact resume."""

import importlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared_data.errors import UserError
from tests.parity.recorder import ParityRecorder

LEVELS = ("v1_quick", "v2_handwritten", "v3_numpy_deep")
END = 0  # the id of <|endoftext|> in these files
FIELDS = ("input_ids", "labels", "position_ids", "document_ids")


def write_tokens(folder: Path, tokens: np.ndarray, name: str = "train", **facts: Any) -> Path:
    """A token file with its description, as the stage `tokenizer` writes them."""
    path = folder / f"{name}.bin"
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


def loader(level: str, path: Path, batch_size: int = 4, length: int = 32, **options: Any) -> Any:
    module = importlib.import_module(f"{level}.pretrain.data_loader")
    return module.PackedDataLoader(path, batch_size, length, END, **{"seed": 3, **options})


def test_all_levels_give_the_same_batches_over_several_epochs(tmp_path: Path, parity: ParityRecorder) -> None:
    path = write_tokens(tmp_path, documents(0, 90))
    loaders = {level: loader(level, path) for level in LEVELS}
    batches = 2 * loaders["v3_numpy_deep"].num_sequences // 4 + 3
    seen = {level: [each.next_batch() for _ in range(batches)] for level, each in loaders.items()}
    for name in FIELDS:
        v1, v2, v3 = (np.stack([getattr(batch, name) for batch in seen[level]]) for level in LEVELS)
        parity(component="data loader", quantity=name, levels="v1-v2", actual=v1, expected=v2, tolerance=0)
        parity(component="data loader", quantity=name, levels="v2-v3", actual=v3, expected=v2, tolerance=0)
    assert loaders["v3_numpy_deep"].epoch == 2
    assert len({json.dumps(each.state_dict()) for each in loaders.values()}) == 1


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("size", [64, 65, 95, 96, 500])
def test_each_token_is_predicted_exactly_once_an_epoch(level: str, size: int, tmp_path: Path) -> None:
    tokens = np.arange(1, size + 1)  # distinct, so that counting them finds any that is lost or seen twice
    each = loader(level, write_tokens(tmp_path, tokens), batch_size=1, length=32)
    predicted: Counter[int] = Counter()
    for _ in range(each.num_sequences):
        batch = each.next_batch()
        kept = batch.labels != -100
        predicted.update(batch.labels[kept].tolist())
        first = (
            batch.input_ids == END
        ) & kept  # only the very first token is predicted from the added end-of-text
        np.testing.assert_array_equal(batch.labels[kept & ~first], batch.input_ids[kept & ~first] + 1)
        assert set(batch.labels[first].tolist()) <= {1}
    assert predicted == Counter(tokens.tolist())
    assert each.next_batch().num_targets > 0
    assert each.epoch == 1


@pytest.mark.parametrize("level", LEVELS)
def test_a_document_begins_at_the_end_of_text_before_it(level: str, tmp_path: Path) -> None:
    stream = np.array([5, 6, END, 7, END, END, 8, 9, 10])
    batch = next(loader(level, write_tokens(tmp_path, stream), 1, 8).one_pass())
    assert batch.input_ids[0].tolist() == [END, 5, 6, END, 7, END, END, 8]
    assert batch.labels[0].tolist() == [5, 6, END, 7, END, END, 8, 9]
    assert batch.position_ids[0].tolist() == [0, 1, 2, 0, 1, 0, 0, 1]
    assert batch.document_ids[0].tolist() == [0, 0, 0, 1, 1, 2, 3, 3]


@pytest.mark.parametrize("level", LEVELS)
def test_the_tail_of_the_file_is_padded_with_labels_that_do_not_count(level: str, tmp_path: Path) -> None:
    each = loader(level, write_tokens(tmp_path, np.arange(1, 12)), batch_size=2, length=8)
    tail = next(each.one_pass())
    assert tail.labels[1].tolist() == [9, 10, 11, -100, -100, -100, -100, -100]
    assert tail.num_targets == 11
    padding = tail.document_ids[1][4:]
    assert len(set(padding.tolist()) - set(tail.document_ids[1][:3].tolist())) == 4, (
        "padding must not be attended to"
    )


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("batches", [0, 1, 7, 23, 60])
def test_a_resumed_loader_continues_with_the_same_batches(level: str, batches: int, tmp_path: Path) -> None:
    path = write_tokens(tmp_path, documents(1, 60))
    whole = loader(level, path)
    for _ in range(batches):
        whole.next_batch()
    state = json.loads(json.dumps(whole.state_dict()))
    resumed = loader(level, path)
    resumed.load_state_dict(state)
    for _ in range(40):
        expected, actual = whole.next_batch(), resumed.next_batch()
        np.testing.assert_array_equal(actual.labels, expected.labels)
    assert whole.state_dict() == resumed.state_dict()


@pytest.mark.parametrize("level", LEVELS)
def test_epochs_and_seeds_have_orders_of_their_own(level: str, tmp_path: Path) -> None:
    path = write_tokens(tmp_path, np.arange(1, 321))

    def order(epochs: int, **options: Any) -> list[int]:
        each = loader(level, path, batch_size=10, length=32, **options)
        return [each.next_batch().labels[:, 0].tolist() for _ in range(epochs)][-1]

    ordered = list(range(1, 321, 32))
    assert order(1, shuffle=False) == order(2, shuffle=False) == ordered
    assert order(1) != order(2)
    assert order(1) != order(1, seed=4)
    assert sorted(order(1)) == sorted(order(2)) == ordered


@pytest.mark.parametrize("level", LEVELS)
def test_a_pass_for_evaluation_is_the_same_every_time_and_leaves_training_alone(
    level: str, tmp_path: Path
) -> None:
    each = loader(level, write_tokens(tmp_path, documents(2, 60)), batch_size=4)
    each.next_batch()
    before = each.state_dict()
    first, second = (np.concatenate([b.labels for b in each.one_pass()]) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert len(first) == each.num_sequences
    assert len(list(each.one_pass(2))) == 2
    assert each.state_dict() == before


@pytest.mark.parametrize("level", LEVELS)
def test_bad_token_files_are_user_errors(level: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="less than one sequence of 32"):
        loader(level, write_tokens(tmp_path, np.arange(1, 32)))
    with pytest.raises(UserError, match="less than one sequence"):
        loader(level, write_tokens(tmp_path, np.array([], dtype=np.uint16)))
    path = write_tokens(tmp_path, np.arange(1, 100))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="damaged"):
        loader(level, path)
    path.unlink()
    with pytest.raises(UserError, match="no token file"):
        loader(level, path)
    with pytest.raises(UserError, match="run the stage `tokenizer` first"):
        loader(level, tmp_path / "absent.bin")


@pytest.mark.parametrize("level", LEVELS)
def test_the_state_of_another_corpus_is_refused(level: str, tmp_path: Path) -> None:
    state = loader(level, write_tokens(tmp_path, documents(3, 30))).state_dict()
    with pytest.raises(UserError, match="num_sequences"):
        loader(level, write_tokens(tmp_path, documents(3, 40), "other")).load_state_dict(state)
