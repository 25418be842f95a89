"""The stage `pretrain` of every level: its numbers, its files, what it starts from, what it refuses."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from shared_data.errors import UserError
from shared_data.runs import RunFolder
from shared_data.settings import Settings, load_settings
from tests.parity.recorder import ParityRecorder
from v2_handwritten.data_pipeline.tokenizer.bpe_train import train_bpe

PACKAGES = {"v1": "v1_quick", "v2": "v2_handwritten", "v3": "v3_numpy_deep"}
LEVELS = tuple(PACKAGES)
SMALL = (
    "tokenizer.vocab_size=290",
    "pretrain.max_steps=8",
    "pretrain.sequence_length=32",
    "pretrain.logging_steps=1",
    "pretrain.eval_steps=4",
    "pretrain.sample_steps=4",
    "pretrain.sample_tokens=3",
    "pretrain.save_steps=3",
)


def stories(count: int, seed: int = 0) -> list[str]:
    """Sentences from a few words, so that eight steps learn something."""
    rng = np.random.default_rng(seed)
    who, what, where = ("Tom", "Mia", "Ben"), ("ball", "kite", "hat"), ("in the park", "at home")
    return [
        f"Once {rng.choice(who)} lost a {rng.choice(what)} {rng.choice(where)}, and {rng.choice(who)} found it."
        for _ in range(count)
    ]


def prepare(level: str, out: Path, *overrides: str, documents: int = 120) -> tuple[Settings, RunFolder]:
    """A run folder as the stages before leave it."""
    settings = load_settings("smoke", [*SMALL, *overrides])
    run = RunFolder(level, settings, out)
    texts = stories(documents)
    tokenizer = train_bpe(
        texts, settings.tokenizer.vocab_size, special_tokens=settings.tokenizer.special_tokens
    )
    tokenizer.save(run.tokenizer.parent)
    for split, part in (("train", texts), ("validation", stories(20, seed=1))):
        tokens = tokenizer.encode_to_array(part, end_of_text=True)
        tokens.astype(np.uint16).tofile(run.tokens(split))
        facts: dict[str, Any] = {"dtype": "uint16", "tokens": len(tokens), "documents": len(part)}
        facts |= {
            "bytes": sum(len(t) for t in part),
            "vocab_size": tokenizer.vocab_size,
            "log2_probability": -300.5,
        }
        run.tokens(split).with_suffix(".json").write_text(json.dumps(facts))
    return settings, run


def pretrain(level: str, settings: Settings, run: RunFolder) -> dict[str, Any]:
    return importlib.import_module(f"{PACKAGES[level]}.pretrain.train").pretrain(settings, run)


def weights(run: RunFolder) -> np.ndarray:
    tensors = load_file(run.model() / "model.safetensors")
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors)])


def log(run: RunFolder) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (run.stage("pretrain") / "metrics_log.jsonl").read_text().splitlines()
    ]


def test_all_levels_train_the_same_model_and_report_the_same_numbers(
    tmp_path: Path, parity: ParityRecorder
) -> None:
    numbers, trained, logs = {}, {}, {}
    for level in LEVELS:
        settings, run = prepare(level, tmp_path / level)
        numbers[level], trained[level], logs[level] = pretrain(level, settings, run), weights(run), log(run)
        facts = json.loads(run.tokens("validation").with_suffix(".json").read_text())
        assert numbers[level]["floor_bits_per_byte"] == pytest.approx(300.5 / facts["bytes"])
        assert numbers[level]["steps"] == 8
        assert numbers[level]["tokens_per_second"] > 0
        assert logs[level][-1]["validation_loss"] < logs[level][3]["validation_loss"] < 5.5
        samples = [row["sample"] for row in logs[level] if "sample" in row]
        assert len(samples) == 2
        assert all(sample.startswith("Once") for sample in samples)
        files = {path.name for path in run.stage("pretrain").rglob("*") if path.is_file()}
        assert all(name.endswith((".json", ".jsonl", ".safetensors")) for name in files), "no pickles"
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
    exact = {name: [numbers[level][name] for level in LEVELS] for name in ("parameters", "tokens", "epochs")}
    assert all(len(set(values)) == 1 for values in exact.values()), exact
    for other in ("v1", "v3"):
        row = {"component": "stage pretrain", "levels": f"v2-{other}", "tolerance": 1e-6}
        parity(quantity="weights after 8 steps", actual=trained[other], expected=trained["v2"], **row)
        for name in ("perplexity", "bits_per_byte", "loss"):
            actual, expected = numbers[other][name], numbers["v2"][name]
            parity(quantity=f"relative {name}", actual=actual / expected, expected=1.0, **row)
        for name in ("validation_loss", "gradient_norm"):
            actual, expected = ([r[name] for r in logs[level] if name in r] for level in (other, "v2"))
            parity(quantity=f"log, {name}", actual=actual, expected=expected, **row)


@pytest.mark.parametrize("level", LEVELS)
def test_watching_a_run_does_not_change_it(level: str, tmp_path: Path) -> None:
    watched = prepare(level, tmp_path / "watched", "model.dropout=0.1")
    quiet = (
        "model.dropout=0.1",
        "pretrain.eval_steps=0",
        "pretrain.sample_steps=0",
        "pretrain.save_steps=0",
    )
    alone = prepare(level, tmp_path / "alone", *quiet)
    for settings, run in (watched, alone):
        pretrain(level, settings, run)
    np.testing.assert_array_equal(weights(watched[1]), weights(alone[1]))
    assert [row["loss"] for row in log(watched[1])] == [row["loss"] for row in log(alone[1])]


@pytest.mark.parametrize("level", LEVELS)
def test_an_interrupted_run_continues_to_the_same_end(
    level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare(level, tmp_path / "whole", "model.dropout=0.1")
    pretrain(level, *whole)
    settings, run = prepare(level, tmp_path / "parts", "model.dropout=0.1")
    train = importlib.import_module(f"{PACKAGES[level]}.pretrain.train")

    class Stop(train.StopRequest):  # as if Ctrl-C came in the first step
        def __enter__(self) -> Any:
            self.requested = True
            return self

        def __exit__(self, *_: object) -> None:
            pass

    with monkeypatch.context() as patch:
        patch.setattr(train, "StopRequest", Stop)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                pretrain(level, settings, run)
    assert [row["step"] for row in log(run)] == [1, 2]
    pretrain(level, settings, run)
    np.testing.assert_array_equal(weights(run), weights(whole[1]))
    assert log(run) == log(whole[1])


@pytest.mark.parametrize("level", LEVELS)
def test_other_settings_start_over_and_so_does_resume_false(level: str, tmp_path: Path) -> None:
    for overrides in (
        (),
        ("pretrain.learning_rate=1e-3",),
        ("pretrain.learning_rate=1e-3", "pretrain.resume_from_checkpoint=false"),
    ):
        settings, run = prepare(level, tmp_path, *overrides)
        pretrain(level, settings, run)
        assert [row["step"] for row in log(run)] == list(range(1, 9)), "the log is of the last run alone"


@pytest.mark.parametrize("level", LEVELS)
def test_a_run_starts_from_the_weights_of_a_folder(level: str, tmp_path: Path) -> None:
    settings, source = prepare(level, tmp_path / "source")
    pretrain(level, settings, source)
    more = (
        "pretrain.learning_rate=1e-9",
        "pretrain.max_steps=2",
        f'pretrain.init_from="{source.checkpoint()}"',
    )
    settings, run = prepare(level, tmp_path / "run", *more)
    pretrain(level, settings, run)
    np.testing.assert_allclose(weights(run), weights(source), atol=1e-6)

    settings, run = prepare(level, tmp_path / "shape", *more, "model.num_hidden_layers=3")
    with pytest.raises(
        UserError, match=r"num_hidden_layers 2, the settings have 3; .*model.num_hidden_layers=2"
    ):
        pretrain(level, settings, run)
    settings, run = prepare(level, tmp_path / "vocabulary", *more, "tokenizer.vocab_size=285")
    with pytest.raises(UserError, match="another tokenizer"):
        pretrain(level, settings, run)
    (source.checkpoint() / "model.safetensors").unlink()
    settings, run = prepare(level, tmp_path / "absent", *more)
    with pytest.raises(UserError):
        pretrain(level, settings, run)


@pytest.mark.parametrize("level", LEVELS)
def test_a_corpus_below_one_sequence_is_refused_before_anything_is_written(
    level: str, tmp_path: Path
) -> None:
    settings, run = prepare(level, tmp_path, documents=1)
    run.tokens("train").write_bytes(run.tokens("train").read_bytes()[:20])
    facts = json.loads(run.tokens("train").with_suffix(".json").read_text()) | {"tokens": 10}
    run.tokens("train").with_suffix(".json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="less than one sequence of 32"):
        pretrain(level, settings, run)
    assert not list((tmp_path / "pretrain").glob("*"))


@pytest.mark.parametrize("level", LEVELS)
def test_tokens_of_another_tokenizer_are_refused(level: str, tmp_path: Path) -> None:
    settings, run = prepare(level, tmp_path)
    path = run.tokens("train").with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 999}))
    with pytest.raises(UserError, match="tokenizer of 999 tokens"):
        pretrain(level, settings, run)
