"""What surrounds the steps of a training: logs, evaluations, checkpoints, resume, Ctrl-C; here around a model of one number."""

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared_data.errors import UserError
from shared_data.runs import RunFolder
from shared_data.settings import load_settings
from shared_data.training.data_order import DataOrder
from shared_data.training.stop_request import StopRequest
from shared_data.training.training_run import TrainingRun

SETTINGS = ("max_steps=7", "logging_steps=1", "eval_steps=3", "sample_steps=4", "save_steps=2")
MOMENTS = ("step", "evaluate", "write", "log", "update")


class Model:
    """One number, trained on the numbers of its examples; `at(moment, step)` is called all along."""

    def __init__(
        self, folder: Path, *overrides: str, at: Callable[[str, int], None] = lambda *_: None
    ) -> None:
        self.settings = load_settings(
            "smoke", [f"pretrain.{override}" for override in (*SETTINGS, *overrides)]
        )
        self.run, self.at, self.weight, self.step = RunFolder("v2", self.settings, folder), at, 1.0, 0
        self.order = DataOrder(5, seed=0)

    def train(self) -> dict[str, Any]:
        """The training to its end; what is measured by the clock left out."""
        callbacks: dict[str, Any] = {"evaluate": self._evaluate, "sample": lambda step: f"at {step}"}
        arguments = {"write": self._write, "restore": self._restore, "data": self.order, **callbacks}
        with TrainingRun("pretrain", self.settings, self.run, **arguments) as training:
            for append, moment in ((training.log.append, "log"), (training.bar.update, "update")):
                target = training.log if moment == "log" else training.bar
                setattr(target, append.__name__, self._watched(append, moment))
            for self.step in training.steps():
                self.weight = self.weight * 0.9 + sum(map(int, self.order.take(3)))
                self.at("step", self.step + 1)
                training.record({"loss": self.weight}, tokens=3)
        return {name: value for name, value in training.summary().items() if name != "tokens_per_second"}

    def _watched(self, function: Callable, moment: str) -> Callable:
        def watched(*arguments: Any, **keywords: Any) -> None:
            function(*arguments, **keywords)
            self.at(moment, self.step + 1)

        return watched

    def _evaluate(self) -> dict[str, float]:
        self.at("evaluate", self.step + 1)
        return {"eval_loss": self.weight / 2}

    def _write(self, folder: Path) -> None:
        (folder / "weight.json").write_text(json.dumps(self.weight))
        self.at("write", self.step + 1)

    def _restore(self, folder: Path) -> None:
        try:
            self.weight = json.loads((folder / "weight.json").read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"weight.json is damaged: {error}") from error

    @property
    def result(self) -> tuple[float, str]:
        """The weight and the log."""
        return self.weight, (self.run.stage("pretrain") / "metrics_log.jsonl").read_text()

    @property
    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.run.stage("pretrain") / "state").iterdir())


@pytest.fixture
def undisturbed(tmp_path: Path) -> tuple[float, str]:
    """Weight and log of a training that was left alone."""
    model = Model(tmp_path / "undisturbed")
    model.train()
    return model.result


def test_a_training_logs_evaluates_samples_and_saves_when_due(tmp_path: Path) -> None:
    model = Model(tmp_path, "logging_steps=2")
    summary = model.train()
    rows = {row.pop("step"): row for row in map(json.loads, model.result[1].splitlines())}
    assert {step: sorted(row) for step, row in rows.items()} == {
        2: ["loss", "tokens"],
        3: ["eval_loss"],
        4: ["loss", "sample", "tokens"],
        6: ["eval_loss", "loss", "tokens"],
        7: ["eval_loss", "loss", "tokens"],  # the last step, whatever is due
    }
    assert rows[4]["sample"] == "at 4"
    assert model.checkpoints == ["step-000006", "step-000007"]
    expected = {
        "step": 7,
        "steps": 7,
        "tokens": 21,
        "loss": model.weight,
        "eval_loss": model.weight / 2,
    }
    assert summary == expected


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("step", [1, 2, 6, 7])
def test_ctrl_c_at_any_moment_saves_stops_and_is_continued(
    moment: str, step: int, tmp_path: Path, undisturbed: tuple[float, str]
) -> None:
    interrupted = []

    def interrupt(here: str, now: int) -> None:
        if here == moment and now >= step and not interrupted:
            interrupted.append(now)
            os.kill(os.getpid(), signal.SIGINT)

    model = Model(tmp_path, at=interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.train()
    stopped_at = min(interrupted[0] + (moment == "update"), 7)
    assert model.checkpoints[-1] == f"step-{stopped_at:06d}"
    assert f'"step": {stopped_at + 1}' not in model.result[1]
    again = Model(tmp_path)
    again.train()
    assert again.result == undisturbed


def test_a_ctrl_c_that_a_callback_swallows_stops_the_run_all_the_same(
    tmp_path: Path, undisturbed: tuple[float, str]
) -> None:
    def swallow(moment: str, step: int) -> None:
        if (moment, step) == ("step", 4):
            os.kill(os.getpid(), signal.SIGINT)
            try:
                os.kill(os.getpid(), signal.SIGINT)  # the second one does not wait
            except KeyboardInterrupt:
                return
            raise AssertionError("the second Ctrl-C interrupts at once")

    model = Model(tmp_path, at=swallow)
    with pytest.raises(KeyboardInterrupt):
        model.train()
    assert model.checkpoints[-1] == "step-000004"
    again = Model(tmp_path)
    again.train()
    assert again.result == undisturbed


def test_sigterm_waits_as_ctrl_c_does_and_handlers_are_put_back() -> None:
    handler = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
    assert signal.getsignal(signal.SIGINT) is handler


DAMAGES: dict[str, Callable[[Path], object]] = {
    "weights cut short": lambda folder: (folder / "weight.json").write_text(""),
    "weights missing": lambda folder: (folder / "weight.json").unlink(),
    "no JSON": lambda folder: (folder / "training_state.json").write_text('{"step"'),
    "state a list": lambda folder: (folder / "training_state.json").write_text("[]"),
    "state missing": lambda folder: (folder / "training_state.json").unlink(),
    "no place in the data": lambda folder: edit(
        folder / "training_state.json", "data", {"size": 5, "seed": 0, "shuffle": True}
    ),
}


def edit(path: Path, key: str, value: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    damage: str, tmp_path: Path, undisturbed: tuple[float, str], capsys: pytest.CaptureFixture[str]
) -> None:
    model = Model(tmp_path)
    model.train()
    newest = model.run.stage("pretrain") / "state" / "step-000007"
    DAMAGES[damage](newest)
    again = Model(tmp_path)
    again.train()
    assert again.result == undisturbed
    assert f"{newest} cannot be read" in capsys.readouterr().out
    for folder in newest.parent.iterdir():
        DAMAGES[damage](folder)
    with pytest.raises(
        UserError, match=r"no checkpoint in .*state can be read; start over with --force"
    ) as caught:
        Model(tmp_path).train()
    assert "\n" not in str(caught.value)
    fresh = Model(tmp_path, "resume_from_checkpoint=false")
    fresh.train()
    assert fresh.result == undisturbed


def test_leftovers_of_killed_runs_are_swept_and_rows_logged_again(
    tmp_path: Path, undisturbed: tuple[float, str]
) -> None:
    def fail(moment: str, step: int) -> None:
        if (moment, step) == ("step", 4):
            raise OSError("a bug")

    with pytest.raises(OSError, match="a bug"):
        Model(tmp_path, at=fail).train()
    folder = Model(tmp_path).run.stage("pretrain")
    (folder / "state" / ".step-000004.1f.tmp").mkdir()
    (folder / ".model.safetensors.1f.tmp").touch()
    again = Model(tmp_path)
    again.train()
    assert again.result == undisturbed
    assert not list(folder.rglob(".*.tmp"))


@pytest.mark.parametrize("overrides", [("learning_rate=1e-3",), ("resume_from_checkpoint=false",)])
def test_other_settings_start_over_and_so_does_resume_false(
    overrides: tuple[str, ...], tmp_path: Path
) -> None:
    steps: list[int] = []
    Model(tmp_path).train()
    Model(
        tmp_path, *overrides, at=lambda moment, step: steps.append(step) if moment == "step" else None
    ).train()
    assert steps == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_stops_the_run(value: float, tmp_path: Path) -> None:
    model = Model(tmp_path, "learning_rate=0.5")

    def diverge(moment: str, step: int) -> None:
        if (moment, step) == ("step", 5):
            model.weight = value

    model.at = diverge
    with pytest.raises(
        UserError, match=rf"loss is {value} at step 5; lower pretrain.learning_rate \(now 0.5\)"
    ):
        model.train()
    assert model.checkpoints == ["step-000002", "step-000004"]


def test_watching_a_run_does_not_change_it(tmp_path: Path, undisturbed: tuple[float, str]) -> None:
    quiet = Model(tmp_path, "eval_steps=0", "sample_steps=0", "save_steps=0", "logging_steps=100")
    quiet.train()
    assert quiet.weight == undisturbed[0]
    assert quiet.checkpoints == ["step-000007"]
    assert len(quiet.result[1].splitlines()) == 1
