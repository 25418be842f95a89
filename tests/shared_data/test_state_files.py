"""A run's own JSON files that were damaged by hand: refused in one line that names the file and the stage that writes it anew."""

from pathlib import Path
from typing import Any

import pytest

from shared_data.errors import UserError
from shared_data.files import write_json
from shared_data.finished import OF_ANOTHER_VERSION, read_finished, write_finished
from shared_data.state_schema import (
    Accuracy,
    Answers,
    Completions,
    DataReport,
    ExpertReading,
    Losses,
    Samples,
    Scores,
    TokenFacts,
    read_state,
)
from shared_data.training.checkpoints import newest_checkpoints

FACTS = {"dtype": "uint16", "tokens": 9, "bytes": 40, "vocab_size": 300}
SAMPLE = {"prompt": "Once", "text": " upon a time"}
COMPLETION = {"prompt": "a", "before": "b", "before_reward": 0.5, "after": "c", "after_reward": 1}
LAYER = {"layer": 0, "bits": 0.1, "most_bits": 2.0, "bits_by_chance": 0.0, "load": [0.5], "shares": {}}
READING = {"tokens": 9, "stories": 1, "kinds": {"a": 9}, "layers": [LAYER]}
DUPLICATE = {"kind": "near", "similarity": 0.9, "text": "a"}

SOUND: list[tuple[Any, Any]] = [
    (TokenFacts, FACTS),
    (Samples, [SAMPLE]),
    (Completions, [COMPLETION, COMPLETION | {"after_reward": None}]),
    (Answers, {"before": [], "after": []}),
    (Accuracy, {"evasive": [3, 4]}),
    (Losses, [2.5, 1]),
    (DataReport, {"cleaning": {"examples": {"markup": ["\ud800"]}}}),
    (ExpertReading, READING),
    (Scores, {"tasks": {"arc": {"acc": 0.5, "acc_stderr": None, "n": 9}}}),
]
DAMAGED: list[tuple[Any, Any, str]] = [
    (TokenFacts, FACTS | {"tokens": "9"}, "tokens is '9', not a valid integer"),
    (TokenFacts, FACTS | {"tokens": -1}, "tokens is -1, not"),
    (TokenFacts, FACTS | {"dtype": "object"}, "dtype is 'object', not"),
    (TokenFacts, FACTS | {"end_of_text_id": 10**12}, "end_of_text_id is 1000000000000, not"),
    (TokenFacts, {"dtype": "uint16"}, "tokens is missing"),
    (TokenFacts, [], "holds a list, not a dict"),
    (Samples, [SAMPLE | {"text": None}], r"records\.0\.text is None, not"),
    (Samples, {}, "holds a dict, not a list"),
    (Completions, [COMPLETION | {"after_reward": "1"}], r"records\.0\.after_reward is '1', not"),
    (Answers, {"before": []}, "after is missing"),
    (Accuracy, {"evasive": [3]}, r"records\.evasive is \[3\]"),
    (Accuracy, {"evasive": [3, True]}, r"records\.evasive\.1 is True, not"),
    (Losses, ["a"], r"records\.0 is 'a', not"),
    (DataReport, {"cleaning": {"examples": []}}, r"cleaning\.examples is \[\], not an object"),
    (DataReport, {"deduplication": {"examples": [DUPLICATE | {"similarity": "x"}]}}, "similarity is 'x', not"),
    (ExpertReading, READING | {"layers": [LAYER | {"load": 5}]}, r"layers\.0\.load is 5, not"),
    (Scores, {"tasks": {"arc": 5}}, r"tasks\.arc is 5, not"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "content"), SOUND)
def test_a_sound_file_is_read_as_it_is(kind: Any, content: Any, tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", content)
    assert read_state(tmp_path / "a.json", kind, "data") == content


@pytest.mark.parametrize(("kind", "content", "says"), DAMAGED)
def test_a_damaged_file_is_one_line(kind: Any, content: Any, says: str, tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", content)
    with pytest.raises(UserError, match=rf"a\.json.*{says}.*; ") as refused:
        read_state(tmp_path / "a.json", kind, "data")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "change",
    [{"metrics": {"loss": "1"}}, {"metrics": []}, {"outputs": {"a": -1}}, {"id": 7}, {"inputs": None}, {"more": 1}],
)  # fmt: skip
def test_a_damaged_record_is_of_another_version(change: dict[str, Any], tmp_path: Path) -> None:
    write_finished(tmp_path, {}, {"loss": 1})
    sound = read_finished(tmp_path)
    assert sound is not None
    assert sound.metrics == {"loss": 1}
    assert type(sound.metrics["loss"]) is int
    write_json(tmp_path / "finished.json", {**vars(sound), **change})
    assert read_finished(tmp_path) is OF_ANOTHER_VERSION


@pytest.mark.parametrize(
    "change", [{"step": "3"}, {"step": -1}, {"seconds": "x"}, {"data": []}, {"data": {"epoch": "x"}}, {"fingerprint": 1}]
)  # fmt: skip
def test_a_damaged_training_state_is_passed_over(change: dict[str, Any], tmp_path: Path) -> None:
    state = {"fingerprint": "f", "step": 3, "tokens": 9, "seconds": 1.0, "data": {}, "loss_scaler": {}}
    folder = tmp_path / "step-000003"
    write_json(folder / "training_state.json", state)
    ((_, sound),) = newest_checkpoints(tmp_path, "f")
    assert not isinstance(sound, UserError)
    write_json(folder / "training_state.json", state | change)
    ((_, damaged),) = newest_checkpoints(tmp_path, "f")
    assert isinstance(damaged, UserError)
