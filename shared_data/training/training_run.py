"""Everything around the steps of a stage that trains: resume, progress, metrics log, evaluations, samples, checkpoints, Ctrl-C.

The engines of levels 2 and 3 (`pretrain/components/training.py`) are the mathematics of a step; they run it inside this. Level 1's
trainers do the same by themselves.

    with TrainingRun("dpo", settings, run, write=…, restore=…, data=order) as training:
        for step in training.steps():
            training.record({"loss": …}, tokens=…)
    training.summary()
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, Self

from shared_data.errors import StageError, UserError
from shared_data.metrics_log import MetricsLog
from shared_data.progress import format_metric, progress
from shared_data.runs import RunFolder
from shared_data.settings import OptimizerSettings, Settings
from shared_data.training.checkpoints import (
    TrainingState,
    clear_checkpoints,
    clear_unfinished,
    newest_checkpoints,
    remove_checkpoint,
    save_checkpoint,
)
from shared_data.training.expert_load import PREFIX
from shared_data.training.stop_request import StopRequest

Metrics = dict[str, float | int]


class Resumable(Protocol):
    """Data whose place can be kept: a loader."""

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from there."""


class TrainingRun:
    """The steps of one stage, and what happens between two of them.

    write(folder), restore(folder): put weights and optimizer into a checkpoint, and take them from it.
    evaluate(): numbers measured on held-out data, every `eval_steps` and at the end.
    sample(step): a text to log, every `sample_steps`.
    shown: the metrics beside the progress bar.
    """

    def __init__(
        self,
        stage: str,
        settings: Settings,
        run: RunFolder,
        *,
        write: Callable[[Path], None],
        restore: Callable[[Path], None],
        data: Resumable,
        evaluate: Callable[[], Metrics] | None = None,
        sample: Callable[[int], str] | None = None,
        shown: Sequence[str] = ("loss",),
    ) -> None:
        self.stage, self.section = stage, getattr(settings, stage)
        self.folder, self.fingerprint = run.stage(stage), run.fingerprint(stage)
        self.write, self.restore, self.data = write, restore, data
        self.evaluate, self.sample, self.shown = evaluate, sample, shown
        self.state = TrainingState()
        self.log = MetricsLog(self.folder / "metrics_log.jsonl")

    def __enter__(self) -> Self:
        self._resume()
        with ExitStack() as stack:
            total, done = self.section.max_steps, self.state.step
            self.bar = stack.enter_context(progress(total, self.stage, done=done))
            self.stop = stack.enter_context(StopRequest())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
        if self.stop.requested and error[0] is None:  # Ctrl-C came when the last step was saved already
            raise KeyboardInterrupt

    def steps(self) -> Iterator[int]:
        """The numbers of the steps that are still to be made, from 0; each must end with `record`."""
        while self.state.step < self.section.max_steps:
            self._started = time.perf_counter()
            yield self.state.step

    def record(
        self, metrics: dict[str, float], tokens: int, loss_scaler: dict[str, Any] | None = None
    ) -> None:
        """One more step is done, and these are its metrics: log, evaluate, sample, save as the settings ask for.

        Raises `StageError` where a metric is not finite, and `KeyboardInterrupt` once all is saved where Ctrl-C was pressed.
        """
        stop_if_diverged(metrics, self.state.step + 1, self.section)
        seconds = time.perf_counter() - self._started
        state = self.state
        state.step += 1
        state.tokens += tokens
        state.seconds += seconds
        state.data, state.loss_scaler = self.data.state_dict(), loss_scaler or {}
        section, step = self.section, state.step
        last = step == section.max_steps
        row: dict[str, Any] = {}
        if step % section.logging_steps == 0 or last:
            row |= metrics | {"tokens": state.tokens}
            row |= {"tokens_per_second": tokens / seconds, "seconds": state.seconds}
        if self.evaluate is not None and (is_due(step, section.eval_steps) or last):
            measured = self.evaluate()
            described = ", ".join(
                f"{name.replace('_', ' ')} {format_metric(name, value)}" for name, value in measured.items()
            )
            self.bar.print(f"step {step}: {described}")
            row |= measured
        if self.sample is not None and is_due(step, section.sample_steps):
            row["sample"] = self.sample(step)
            self.bar.print(f"step {step}: {row['sample']!r}")
        if row:
            self.log.append(step=step, **row)
        if is_due(step, section.save_steps) or last or self.stop.requested:
            limit = section.save_total_limit
            save_checkpoint(
                self.folder / "state", state, self.write, fingerprint=self.fingerprint, keep=limit
            )
            if self.stop.requested:
                raise KeyboardInterrupt
        shown = {name: metrics[name] for name in self.shown if name in metrics}
        self.bar.update(1, **shown, tokens_per_second=tokens / seconds)

    def summary(self) -> Metrics:
        """The numbers of the last step, and of the whole training."""
        last = self.log.rows()[-1]
        state = self.state
        numbers = {name: value for name, value in last.items() if isinstance(value, int | float)}
        numbers = {name: value for name, value in numbers.items() if not name.startswith(PREFIX)}
        return numbers | {
            "steps": state.step,
            "tokens": state.tokens,
            "tokens_per_second": state.tokens / max(state.seconds, 1e-9),
        }

    def _resume(self) -> None:
        """Continue from the newest checkpoint that can be read; without one, start from the beginning."""
        clear_unfinished(self.folder)
        clear_unfinished(self.folder / "state")
        damaged: list[Path] = []
        if self.section.resume_from_checkpoint:
            for checkpoint, state in newest_checkpoints(self.folder / "state", self.fingerprint):
                try:
                    if isinstance(state, UserError):
                        raise state
                    self.restore(checkpoint)
                    self.data.load_state_dict(state.data)
                except (UserError, KeyError) as error:
                    damaged.append(checkpoint)
                    print(f"{checkpoint} cannot be read ({error}); trying the one before it", flush=True)
                    continue
                self.state = state
                break
        if damaged and not self.state.step:
            raise UserError(f"no checkpoint in {self.folder / 'state'} can be read; start over with --force")
        for checkpoint in damaged:
            remove_checkpoint(checkpoint)
        if not self.state.step:
            clear_checkpoints(self.folder / "state")
        # What a killed run logged after its last checkpoint comes again.
        self.log.truncate_after(self.state.step)


def stop_if_diverged(metrics: dict[str, float], step: int, section: OptimizerSettings) -> None:
    """Raise `StageError` where a number of a step is not finite; checkpoints of earlier steps are kept."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise StageError(
                f"training diverged: {name.replace('_', ' ')} is {value} at step {step}; lower {section.stage}.learning_rate "
                f"(now {section.learning_rate:g}) or raise {section.stage}.warmup_steps (now {section.warmup_steps}); checkpoints of "
                "earlier steps are kept"
            )


def is_due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens after this one."""
    return every > 0 and step % every == 0
