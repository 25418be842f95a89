"""What happens between two steps of any stage that trains: the log, the progress bar, evaluation, a sample, a checkpoint, a stop.

The training loops know nothing of files or terminals; a stage hands them an `AfterStep`. The file is the same at all levels.

    after_step = AfterStep(settings, run, "pretrain", optimizer, state, log, bar, stop, write_weights, evaluate)
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shared_data.metrics_log import MetricsLog
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from shared_data.training.training_state import (
    StopRequest,
    TrainingState,
    save_training_state,
)
from v2_handwritten.pretrain.components.optimizers import AdamW
from v2_handwritten.pretrain.components.training_loop import Step


class AfterStep:
    """Called with each `Step` of the training loop, or told of a step of another kind by `record`.

    stage: names the settings section and the folder.
    write_weights(folder): puts the weights of a checkpoint into a folder.
    evaluate(): numbers measured on held-out data, every `eval_every` steps and at the end.
    sample(step): a text to log, every `sample_every` steps.
    shown: the numbers that stand beside the progress bar.
    """

    def __init__(
        self,
        settings: Settings,
        run: RunFolder,
        stage: str,
        optimizer: AdamW,
        state: TrainingState,
        log: MetricsLog,
        bar: Any,  # shared_data.progress.Progress
        stop: StopRequest,
        write_weights: Callable[[Path], None],
        evaluate: Callable[[], dict[str, float]] | None = None,
        sample: Callable[[int], str] | None = None,
        sample_every: int = 0,
        shown: Sequence[str] = ("loss",),
    ) -> None:
        self.section, self.stage, self.run = getattr(settings, stage), stage, run
        self.optimizer, self.state, self.write_weights = optimizer, state, write_weights
        self.log, self.bar, self.stop, self.shown = log, bar, stop, shown
        self.evaluate, self.sample, self.sample_every = evaluate, sample, sample_every

    def __call__(self, step: Step) -> None:
        norm = step.gradient_norm if math.isfinite(step.gradient_norm) else None
        numbers = {"loss": step.loss, "gradient_norm": norm, "learning_rate": step.learning_rate}
        self.record(step.number, numbers, step.tokens / step.seconds)

    def record(self, number: int, numbers: dict[str, Any], tokens_per_second: float) -> None:
        """Step `number` is done, and these are its numbers. Raises `KeyboardInterrupt` where a stop was asked for, once all is saved."""
        section, last = self.section, number == self.section.steps
        row: dict[str, Any] = {}
        if number % section.log_every == 0 or last:
            row |= numbers | {"tokens": self.state.tokens}
            row |= {"tokens_per_second": tokens_per_second, "seconds": self.state.seconds}
        if self.evaluate is not None and (_is_due(number, section.eval_every) or last):
            measured = self.evaluate()
            described = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in measured.items())
            self.bar.print(f"step {number}: {described}")
            row |= measured
        if self.sample is not None and _is_due(number, self.sample_every):
            row["sample"] = self.sample(number)
            self.bar.print(f"step {number}: {row['sample']!r}")
        if row:
            self.log.append(step=number, **row)
        # Asked once: a stop that comes after the checkpoint waits for the next one.
        stopping = self.stop.requested
        if _is_due(number, section.checkpoint_every) or last or stopping:
            self._save()
        shown = {name: numbers[name] for name in self.shown if numbers.get(name) is not None}
        self.bar.update(1, **shown, tokens_per_second=tokens_per_second)
        if stopping and not last:
            raise KeyboardInterrupt

    def _save(self) -> None:
        """A checkpoint to continue from; the log up to here is on disk already."""
        save_training_state(
            self.run.stage(self.stage) / "state",
            self.state,
            self.write_weights,
            self.optimizer,
            fingerprint=self.run.fingerprint(self.stage),
            keep=self.section.keep_checkpoints,
        )


def _is_due(step: int, every: int) -> bool:
    """Whether something that happens every so many steps (0: never) happens after this one."""
    return every > 0 and step % every == 0
