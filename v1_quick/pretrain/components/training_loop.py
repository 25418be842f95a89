"""The training loop: `transformers.Trainer`, on the batches of our loader and with the optimizer and schedule beside this.

The theory is in v2_handwritten/pretrain/components/training_loop.md. The Trainer does what the loops of levels 2 and 3 spell
out: accumulation normalised over all tokens (`num_items_in_batch`), clipping, autocast, the update. A callback takes the
place of `after_step`. The labels are shifted already, which the library's loss takes as `shift_labels`.

    train(model, optimizer, loader, settings.pretrain, TrainingState(), after_step=print)
"""

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, get_scheduler

from shared_data.errors import UserError
from shared_data.settings import TrainingSettings
from v1_quick.models.transformer import Transformer
from v1_quick.pretrain.components.schedulers import _scheduler_arguments
from v1_quick.pretrain.components.training_state import TrainingState
from v1_quick.pretrain.data_loader import Batch, PackedDataLoader


@dataclass(frozen=True)
class Step:
    """What happened in one optimizer step."""

    number: int  # finished steps, this one included
    loss: float  # nats per token, mean over all tokens of the step, before the update
    gradient_norm: float  # before clipping
    learning_rate: float
    tokens: int  # predictions in the step
    seconds: float


def train(
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    loader: PackedDataLoader,
    settings: TrainingSettings,
    state: TrainingState,
    after_step: Callable[[Step], None],
) -> None:
    """Train until `settings.steps`, from where `state` stands; `state` is kept up to date for checkpoints.

    Raises `UserError` when loss or gradient is no longer a number, or far off.
    """
    if state.step >= settings.steps:
        return
    name, arguments = _scheduler_arguments(settings)
    scheduler = get_scheduler(
        name, optimizer, settings.warmup_steps, settings.steps, scheduler_specific_kwargs=arguments
    )
    if state.step > 0:  # a resumed run goes on where the schedule was
        rates = [settings.learning_rate * factor(state.step) for factor in scheduler.lr_lambdas]
        scheduler.load_state_dict(scheduler.state_dict() | {"last_epoch": state.step, "_last_lr": rates})
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
    with tempfile.TemporaryDirectory() as folder:  # the Trainer insists on one, though it saves nothing
        trainer = _Trainer(
            model=model.library,
            args=_training_arguments(settings, state, next(model.parameters()).device, folder),
            train_dataset=loader,
            data_collator=_collator(settings.document_masks),
            optimizers=(optimizer, scheduler),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_StepCallback(trainer, loader, settings, state, after_step))
        trainer.train()
    model.library.config.use_cache = (
        True  # the Trainer turned it off, and the configuration is saved with the model
    )


def evaluate_loss(
    model: Transformer, loader: PackedDataLoader, max_batches: int | None, document_masks: bool
) -> float:
    """Nats per token over the first sequences of the file: no randomness, the same batches every time."""
    device = next(model.parameters()).device
    nats, num_targets = 0.0, 0
    model.eval()
    with torch.no_grad():
        for batch in loader.one_pass(max_batches):
            nats += model.loss(**_model_inputs(batch, document_masks, device)).item() * batch.num_targets
            num_targets += batch.num_targets
    model.train()
    return nats / num_targets


def _training_arguments(
    settings: TrainingSettings, state: TrainingState, device: torch.device, folder: str
) -> TrainingArguments:
    """Our settings by the Trainer's names; what a callback does is turned off."""
    if settings.precision == "float16" and device.type == "cpu":
        raise UserError(
            "the Trainer has float16 on GPUs only; use --set pretrain.precision=bfloat16, or level 2"
        )
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=settings.steps - state.step,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        activation_checkpointing=settings.activation_checkpointing,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.precision == "bfloat16",
        fp16=settings.precision == "float16",
        use_cpu=device.type == "cpu",
        seed=settings.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would hide a diverged run
        remove_unused_columns=False,  # the collator has chosen them
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # more GPUs in one process would multiply the batch
    return arguments


class _Trainer(Trainer):
    """The Trainer, remembering how many tokens its loss was normalised over."""

    tokens_in_step = 0

    def compute_loss(self, *arguments: Any, num_items_in_batch: Any = None, **keywords: Any) -> Any:
        """Mean loss over all tokens of the accumulated step."""
        self.tokens_in_step = int(num_items_in_batch)
        return super().compute_loss(*arguments, num_items_in_batch=num_items_in_batch, **keywords)


class _StepCallback(TrainerCallback):
    """Reports each step as levels 2 and 3 do."""

    def __init__(
        self,
        trainer: _Trainer,
        loader: PackedDataLoader,
        settings: TrainingSettings,
        state: TrainingState,
        after_step: Callable[[Step], None],
    ) -> None:
        self.trainer, self.loader, self.settings, self.after_step = trainer, loader, settings, after_step
        self.progress = state
        self.started = time.perf_counter()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Dropout draws from a generator seeded anew by (seed, step), so a resumed run has no state of it to restore."""
        torch.manual_seed(self.settings.seed * 1_000_003 + self.progress.step)

    def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
        """After every step, and once more at the end of training, then without a loss."""
        if logs is None or "loss" not in logs:
            return
        seconds, tokens = time.perf_counter() - self.started, self.trainer.tokens_in_step
        loss, norm = logs["loss"], float(logs.get("grad_norm", 0.0))
        step = self.progress.step + 1
        _stop_if_diverged(loss, norm, step, self.trainer.model.config.vocab_size, self.settings)
        self.progress.step = step
        self.progress.tokens += tokens
        self.progress.seconds += seconds
        self.progress.loader = self._loader_state(step)
        self.after_step(Step(step, loss, norm, logs["learning_rate"], tokens, seconds))
        self.started = time.perf_counter()

    def _loader_state(self, step: int) -> dict[str, Any]:
        """Where the data stands after a step: the loader itself is ahead, because the Trainer fetches batches early."""
        given = step * self.settings.gradient_accumulation_steps * self.settings.batch_size
        epoch, position = divmod(given, self.loader.num_sequences)
        return self.loader.state_dict() | {"epoch": epoch, "position": position}


def _collator(document_masks: bool) -> Callable[[list[dict[str, torch.Tensor]]], dict[str, torch.Tensor]]:
    """Stacks sequences into the arguments of a library model, which finds the documents in `position_ids`."""

    def collate(sequences: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        batch = torch.utils.data.default_collate(sequences)
        inputs = {name: batch[name] for name in ("input_ids", "labels")}
        inputs["shift_labels"] = inputs["labels"]
        if document_masks:
            inputs["position_ids"] = batch["position_ids"]
        return inputs

    return collate


def _model_inputs(batch: Batch, document_masks: bool, device: torch.device) -> dict[str, torch.Tensor]:
    """The arguments of `Transformer.loss`."""
    names = ["input_ids", "labels"] + (["position_ids"] if document_masks else [])
    return {name: torch.from_numpy(getattr(batch, name)).to(device) for name in names}


def _stop_if_diverged(
    loss: float, norm: float, step: int, vocab_size: int, settings: TrainingSettings
) -> None:
    """A run beyond saving ends here, with its checkpoints as they are; ln V is the loss of guessing blindly."""
    if math.isfinite(loss) and math.isfinite(norm) and loss < 4 * math.log(vocab_size):
        return
    what = f"the loss is {loss:.4g}" if math.isfinite(norm) else f"the gradient norm is {norm}"
    raise UserError(
        f"training diverged: {what} at step {step}; lower {settings.stage}.learning_rate (now {settings.learning_rate:g}) or raise "
        f"{settings.stage}.warmup_steps (now {settings.warmup_steps}); checkpoints of earlier steps are kept"
    )
