"""The loop around the steps of the stages `reward`, `dpo`, `ppo` and `grpo`: trl's trainers have it inside.

Here stands what all of them are told, in the words of our settings, and how their numbers come into our log and beside our
bar. They start over where they were interrupted: what a Trainer continues from are pickles.

    trainer = RewardTrainer(model, _configure(RewardConfig, section, device, folder), train_dataset=pairs)
    _listen(trainer, _AfterStep(settings, run, "reward", bar).heard, _LOGGED)
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, TrainerCallback

from shared_data.errors import UserError
from shared_data.metrics_log import MetricsLog
from shared_data.runs import RunFolder
from shared_data.settings import OptimizerSettings, Settings
from v1_quick.models.transformer import Transformer
from v1_quick.pretrain.components.after_step import AfterStep
from v1_quick.pretrain.components.schedulers import _scheduler_arguments
from v1_quick.pretrain.components.training_state import StopRequest, TrainingState

Metrics = dict[str, float]

# What a trainer logs, and what level 2 calls it.
_LOGGED = {
    "loss": "loss",
    "grad_norm": "gradient_norm",
    "learning_rate": "learning_rate",
    "num_tokens": "tokens",
}


def _configure(
    kind: Any, section: OptimizerSettings, device: torch.device, folder: str, **options: Any
) -> Any:
    """A trainer's arguments from a section of the settings; `options` are those of its kind, or come instead."""
    schedule, schedule_options = _scheduler_arguments(section)
    common = {
        "output_dir": folder,  # the Trainer insists on one, though it saves nothing
        "max_steps": section.steps,
        "learning_rate": section.learning_rate,
        "lr_scheduler_type": schedule,
        "lr_scheduler_kwargs": schedule_options,
        "warmup_steps": section.warmup_steps,
        "weight_decay": section.weight_decay,
        "adam_beta1": section.adam_beta1,
        "adam_beta2": section.adam_beta2,
        "adam_epsilon": section.adam_epsilon,
        "max_grad_norm": section.max_grad_norm,
        "seed": section.seed,
        "use_cpu": device.type == "cpu",
        "bf16": False,
        "activation_checkpointing": False,  # trl's default is to recompute every block
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would hide a diverged run
        "save_strategy": "no",
        "report_to": "none",
        "log_level": "error",  # it would speak of token ids that are meant
        "disable_tqdm": True,
    }
    arguments = kind(**common | options)
    arguments._n_gpu = min(arguments.n_gpu, 1)  # more GPUs in one process would multiply the batch
    return arguments


def _listen(
    trainer: Any,
    after_step: Callable[[int, Metrics], None],
    names: Mapping[str, str],
    steps_per_update: int = 1,
) -> None:
    """Have the trainer tell `after_step` the number of finished updates, and its numbers by the names of level 2."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Listener(after_step, names, steps_per_update))


class _Listener(TrainerCallback):
    """Hears what a trainer logs."""

    def __init__(
        self, after_step: Callable[[int, Metrics], None], names: Mapping[str, str], steps_per_update: int
    ) -> None:
        self.after_step, self.names, self.steps_per_update = after_step, names, steps_per_update

    def on_log(self, _args: Any, state: Any, _control: Any, logs: Any = None, **__: Any) -> None:
        """After each update; what is logged by an evaluation or at the end has other names."""
        first = next(iter(self.names))
        if logs and first in logs:
            numbers = {ours: logs[theirs] for theirs, ours in self.names.items() if theirs in logs}
            self.after_step(state.global_step // self.steps_per_update, numbers)


class _AfterStep(AfterStep):
    """What happens after a step at all levels (pretrain/components/after_step.py), but for checkpoints."""

    def __init__(
        self,
        settings: Settings,
        run: RunFolder,
        stage: str,
        bar: Any,  # shared_data.progress.Progress
        evaluate: Callable[[], Metrics] | None = None,
        shown: Sequence[str] = ("loss",),
    ) -> None:
        log = MetricsLog(run.stage(stage) / "metrics_log.jsonl")
        log.truncate_after(-1)
        optimizer: Any = None  # the trainer's own
        state, stop = TrainingState(), StopRequest()
        super().__init__(
            settings, run, stage, optimizer, state, log, bar, stop, lambda _: None, evaluate, shown=shown
        )
        self.started = time.perf_counter()

    def heard(self, step: int, numbers: Metrics) -> None:
        """Step `step` is done; among its numbers are the `tokens` of all steps so far. Raises `UserError` where one is not finite."""
        _stop_if_not_finite(numbers, step, self.section)
        steady = {name: value for name, value in numbers.items() if name != "tokens"}
        tokens, seconds = int(numbers["tokens"]), time.perf_counter() - self.started
        tokens_per_second = (tokens - self.state.tokens) / seconds
        self.state.step, self.state.tokens = step, tokens
        self.state.seconds += seconds
        self.record(step, steady, tokens_per_second)
        self.started = time.perf_counter()  # an evaluation does not count

    def last(self) -> Metrics:
        """The numbers of the last step and of the whole."""
        return {
            **self.log.rows()[-1],
            "steps": self.state.step,
            "tokens": self.state.tokens,
            "tokens_per_second": self.state.tokens / max(self.state.seconds, 1e-9),
        }

    def _save(self) -> None:
        """Nothing: see above."""


@contextmanager
def _kept_configuration(model: Transformer) -> Iterator[None]:
    """The trainers write the tokenizer's one end, its padding, and no cache into the configuration; afterwards it is as before."""
    configurations = (model.library.config, model.library.generation_config)
    names = ("eos_token_id", "bos_token_id", "pad_token_id", "use_cache")
    kept = [(c, name, getattr(c, name)) for c in configurations for name in names if hasattr(c, name)]
    yield
    for configuration, name, value in kept:
        setattr(configuration, name, value)


def _without_dropout(model: nn.Module) -> None:
    """As levels 2 and 3 learn from replies of their own; trl's `disable_dropout` forgets the attention of Llama."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010  an attribute that nn.Module knows nothing of


def _stop_if_not_finite(numbers: Metrics, step: int, section: OptimizerSettings) -> None:
    """A run beyond saving ends here."""
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise UserError(
                f"training diverged: {name.replace('_', ' ')} is {value} at step {step}; lower {section.stage}.learning_rate "
                f"(now {section.learning_rate:g}) or {section.stage}.max_grad_norm (now {section.max_grad_norm:g})"
            )
