"""The training loop: batches, forward, backward, clip, learning rate, update; again.

One step of gradient accumulation is one large batch, cut up to fit the memory. Its loss is the mean over all tokens of all
its pieces, so each piece counts by its tokens: the mean of the pieces' means is another number as soon as one piece has
fewer targets (training_loop.md has the story of that bug).

Everything that shows, logs or saves hangs on `after_step`, which `train.py` gives. Level 1 is `transformers.Trainer` with a
callback; level 3 is the same loop over NumPy, in float32 only.

    train(model, optimizer, loader, settings.pretrain, TrainingState(), after_step=print)
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shared_data.errors import UserError
from shared_data.settings import TrainingSettings
from shared_data.training.data_loader import Batch, BatchSource
from shared_data.training.schedulers import learning_rate
from shared_data.training.training_state import TrainingState
from v2_handwritten.models.packing import Packing
from v2_handwritten.models.transformer import Transformer
from v2_handwritten.pretrain.components.gradient_clipping import clip_gradients
from v2_handwritten.pretrain.components.optimizers import AdamW
from v2_handwritten.pretrain.components.precision import LossScaler, compute_dtype


@dataclass(frozen=True)
class Step:
    """What happened in one optimizer step."""

    number: int  # finished steps, this one included
    loss: float  # nats per token, mean over all tokens of the step, before the update
    gradient_norm: float  # before clipping; not finite where float16 overflowed and the update was left out
    learning_rate: float
    tokens: int  # predictions in the step
    seconds: float


def train(
    model: Transformer,
    optimizer: AdamW,
    loader: BatchSource,
    settings: TrainingSettings,
    state: TrainingState,
    after_step: Callable[[Step], None],
) -> None:
    """Train until `settings.steps`, from where `state` stands; `state` is kept up to date for checkpoints.

    Raises `UserError` when loss or gradient is no longer a number, or far off; that update is not made.
    """
    parameters = list(model.parameters())
    device = parameters[0].device
    scaler = LossScaler(enabled=settings.precision == "float16")
    scaler.load_state_dict(state.loss_scaler)
    model.compute_dtype = compute_dtype(settings.precision, device)
    model.kernels = "library" if settings.attention_kernel == "library" else "fused"
    model.gradient_checkpointing = settings.activation_checkpointing
    compute_loss = torch.compile(model.loss) if settings.compile else model.loss

    model.train()
    while state.step < settings.steps:
        started = time.perf_counter()
        batches = [loader.next_batch() for _ in range(settings.gradient_accumulation_steps)]
        # Dropout draws from a generator seeded anew by (seed, step), so a resumed run has no state of it to restore.
        model.dropout_generator.manual_seed(settings.seed * 1_000_003 + state.step)
        loss = _accumulate_gradients(compute_loss, batches, settings.document_masks, device, scaler.scale)
        scaler.unscale(parameters)
        norm = clip_gradients(parameters, settings.max_grad_norm)
        overflow = scaler.enabled and not math.isfinite(norm)
        _stop_if_diverged(loss, 0.0 if overflow else norm, state.step + 1, model.config.vocab_size, settings)
        optimizer.learning_rate = learning_rate(
            state.step,
            peak=settings.learning_rate,
            total_steps=settings.steps,
            warmup_steps=settings.warmup_steps,
            schedule=settings.schedule,
            min_ratio=settings.min_learning_rate_ratio,
            decay_fraction=settings.decay_fraction,
        )
        if not overflow:
            optimizer.step()
        optimizer.zero_grad()
        scaler.update(overflow)

        tokens, seconds = sum(batch.num_targets for batch in batches), time.perf_counter() - started
        state.step += 1
        state.tokens += tokens
        state.seconds += seconds
        state.loader = loader.state_dict()
        state.loss_scaler = scaler.state_dict()
        after_step(Step(state.step, loss, norm, optimizer.learning_rate, tokens, seconds))


def _accumulate_gradients(
    compute_loss: Callable[..., Tensor],
    batches: Sequence[Batch],
    document_masks: bool,
    device: torch.device,
    scale: float = 1.0,
) -> float:
    """Add the gradients of the mean loss over all targets of all batches, times `scale`; return that mean loss."""
    num_targets = sum(batch.num_targets for batch in batches)
    total = torch.zeros((), device=device)
    for batch in batches:
        # A sum of means, weighted so that every token counts the same.
        share = batch.num_targets / num_targets
        loss = compute_loss(**_model_inputs(batch, document_masks, device)) * share
        (loss * scale).backward()
        total += loss.detach()
    return total.item()


@torch.no_grad()
def evaluate_loss(
    model: Transformer, loader: BatchSource, max_batches: int | None, document_masks: bool
) -> float:
    """Nats per token over the first sequences of the file: no randomness, the same batches every time."""
    device = next(model.parameters()).device
    nats, num_targets = 0.0, 0
    model.eval()
    for batch in loader.one_pass(max_batches):
        nats += model.loss(**_model_inputs(batch, document_masks, device)).item() * batch.num_targets
        num_targets += batch.num_targets
    model.train()
    return nats / num_targets


def _model_inputs(batch: Batch, document_masks: bool, device: torch.device) -> dict[str, Any]:
    """The arguments of `Transformer.loss`, on the device; without document masks the model counts positions itself."""
    names = ["input_ids", "labels"] + (["position_ids", "document_ids"] if document_masks else [])
    tensors: dict[str, Any] = {name: torch.from_numpy(getattr(batch, name)) for name in names}
    if device.type == "cuda":  # from pinned memory, the copy runs while the CPU goes on
        tensors = {name: t.pin_memory().to(device, non_blocking=True) for name, t in tensors.items()}
    if document_masks:
        tensors["packing"] = Packing.from_documents(tensors.pop("document_ids"))
    return tensors


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
