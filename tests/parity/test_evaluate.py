"""All levels: the stage `evaluate` measures the same of one checkpoint, beside the floor of exactly the text it read."""

import json
from pathlib import Path

import numpy as np
import pytest

from shared_data.errors import UserError
from shared_data.evaluation.held_out import loss_by_position
from shared_data.files import read_json, write_json
from shared_data.runs import RunFolder
from tests.parity.inference_cases import small_run
from tests.parity.recorder import ParityRecorder
from v1_quick.evaluation.evaluate import evaluate as evaluate_v1
from v2_handwritten.evaluation.evaluate import evaluate as evaluate_v2
from v3_numpy_deep.evaluation.evaluate import evaluate as evaluate_v3

LEVELS = (evaluate_v1, evaluate_v2, evaluate_v3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return small_run(
        tmp_path_factory.mktemp("run"), "evaluate.max_tokens=null", "pretrain.sequence_length=48"
    )


def stories(run: RunFolder) -> list[dict]:
    return [json.loads(line) for line in run.documents("test").read_text().splitlines()]


def test_the_levels_measure_the_same(parity: ParityRecorder, run: RunFolder) -> None:
    measured = [evaluate(run.settings, run) for evaluate in LEVELS]
    for levels, metrics in (("v1-v2", measured[0]), ("v3-v2", measured[2])):
        assert metrics.keys() == measured[1].keys()
        exact = ("floor_bits_per_byte", "tokens", "bytes")
        for name in ("perplexity", "bits_per_byte", "ratio_to_floor", *exact):
            parity(
                component="evaluate",
                quantity=name,
                levels=levels,
                actual=metrics[name],
                expected=measured[1][name],
                tolerance=0.0
                if name in ("tokens", "bytes", "floor_bits_per_byte")
                else 1e-7,  # the checkpoint is float32
            )
    told = stories(run)
    size = sum(len(story["text"].encode()) for story in told)
    assert measured[1]["bytes"] == size
    assert measured[1]["tokens"] == read_json(run.tokens("test").with_suffix(".json"))["tokens"]
    bits = -sum(story["log2_probability"] for story in told)
    assert measured[1]["floor_bits_per_byte"] == pytest.approx(bits / size)
    assert measured[1]["ratio_to_floor"] > 1


def test_a_limit_on_tokens_cuts_text_bytes_and_floor_at_the_same_document(run: RunFolder) -> None:
    tokens = np.fromfile(run.tokens("test"), np.uint16)
    end = read_json(run.tokens("test").with_suffix(".json"))["end_of_text_id"]
    third = int(np.flatnonzero(tokens == end)[2]) + 1
    section = run.settings.evaluate.model_copy(update={"max_tokens": third + 5})
    settings = run.settings.model_copy(update={"evaluate": section})
    told = stories(run)[:3]
    for evaluate in LEVELS:
        metrics = evaluate(settings, run)
        assert metrics["tokens"] == third
        assert metrics["bytes"] == sum(len(story["text"].encode()) for story in told)
        bits = -sum(story["log2_probability"] for story in told)
        assert metrics["floor_bits_per_byte"] == pytest.approx(bits / metrics["bytes"])


def test_a_limit_inside_the_first_document_counts_the_bytes_of_its_tokens(run: RunFolder) -> None:
    section = run.settings.evaluate.model_copy(update={"max_tokens": 20})
    settings = run.settings.model_copy(update={"evaluate": section})
    for evaluate in LEVELS:
        metrics = evaluate(settings, run)
        assert metrics["tokens"] == 20
        assert 20 <= metrics["bytes"] < len(stories(run)[0]["text"])
        assert "floor_bits_per_byte" not in metrics, "the probability of half a story is not known"


def test_a_checkpoint_of_another_vocabulary_reads_in_its_own_tokens_or_is_refused(
    run: RunFolder, tmp_path: Path
) -> None:
    other = small_run(tmp_path, stories=3)  # as many tokens, from other text
    found = [evaluate(run.settings, run, other.model("pretrain")) for evaluate in LEVELS]
    own = LEVELS[0](run.settings, run)
    for metrics in found:
        assert metrics["bytes"] == own["bytes"]
        assert metrics["tokens"] == found[0]["tokens"] != own["tokens"]
        assert metrics["bits_per_byte"] == pytest.approx(found[0]["bits_per_byte"], rel=1e-5)
    (other.model("pretrain") / "tokenizer.json").unlink()
    definition = read_json(run.tokenizer)
    definition["added_tokens"].append(definition["added_tokens"][0] | {"id": 320, "content": "<|more|>"})
    write_json(other.tokenizer, definition)
    for evaluate in LEVELS:
        with pytest.raises(UserError, match="vocabulary of 320"):
            evaluate(run.settings, other)


def test_an_empty_split_is_named(tmp_path: Path) -> None:
    run = small_run(tmp_path, stories=3)
    facts = run.tokens("test").with_suffix(".json")
    run.tokens("test").write_bytes(b"")
    write_json(facts, read_json(facts) | {"tokens": 0, "bytes": 0})
    for evaluate in LEVELS:
        with pytest.raises(UserError, match="test split is empty"):
            evaluate(run.settings, run)


def test_loss_by_position_is_a_mean_over_documents() -> None:
    tokens = np.array(
        [5, 6, 0, 7, 0, 8, 9, 9, 0]
    )  # documents of three, two and four tokens, each closed by 0
    nats = np.array([3.0, 2, 1, 5, 4, 1, 0, 8, 9])
    assert loss_by_position(nats, tokens, 0, fewest=2) == [3.0, 2.0, 4.5]
    assert loss_by_position(nats, tokens, 0, fewest=4) == []
    nats[0] = np.nan  # a first token that nothing stands before
    assert loss_by_position(nats, tokens, 0, fewest=1) == [3.0, 2.0, 4.5, 9.0]
    assert loss_by_position(np.ones(3), np.array([4, 5, 6]), 0, fewest=1) == [1.0, 1.0, 1.0]


def test_the_stage_keeps_the_loss_by_position_for_the_report(run: RunFolder) -> None:
    for evaluate in LEVELS:
        evaluate(run.settings, run)
        assert not list(run.path.rglob("loss_by_position.json")), (
            "another model may be evaluated in a finished run"
        )
    with run.writing("evaluate"):
        evaluate_v2(run.settings, run)
    assert (run.path / "evaluate" / "loss_by_position.json").is_file()
