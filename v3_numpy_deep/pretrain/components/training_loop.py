"""The training loop: batches, forward, backward, clip, learning rate, update; again.

One step of gradient accumulation is one large batch, cut up to fit the memory. Its loss is the mean over all tokens of all
its pieces, so each piece counts by its tokens: the mean of the pieces' means is another number as soon as one piece has
fewer targets (training_loop.md has the story of that bug).

Everything that shows, logs or saves hangs on `after_step`, which `train.py` gives. Level 1 is `transformers.Trainer` with a
callback; level 2 is the same loop over torch, with mixed precision and on any device.

    train(model, optimizer, loader, settings.pretrain, TrainingState(), after_step=print)
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shared_data.errors import UserError
from shared_data.settings import TrainingSettings
from shared_data.training.data_loader import Batch, BatchSource
from shared_data.training.schedulers import learning_rate
from shared_data.training.training_state import TrainingState
from v3_numpy_deep.autograd import no_grad
from v3_numpy_deep.models.packing import Packing
from v3_numpy_deep.models.transformer import Transformer
from v3_numpy_deep.pretrain.components.gradient_clipping import clip_gradients
from v3_numpy_deep.pretrain.components.optimizers import AdamW


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
    if settings.precision != "float32":
        raise UserError(
            "NumPy multiplies matrices in 32 bits only; use --set pretrain.precision=float32, or level 1 or 2"
        )

    model.train()
    while state.step < settings.steps:
        started = time.perf_counter()
        batches = [loader.next_batch() for _ in range(settings.gradient_accumulation_steps)]
        # Dropout draws from a generator seeded anew by (seed, step), so a resumed run has no state of it to restore.
        model.dropout_generator = np.random.default_rng([settings.seed, state.step])
        loss = _accumulate_gradients(model, batches, settings.document_masks)
        norm = clip_gradients(parameters, settings.max_grad_norm)
        _stop_if_diverged(loss, norm, state.step + 1, model.config.vocab_size, settings)
        optimizer.learning_rate = learning_rate(
            state.step,
            peak=settings.learning_rate,
            total_steps=settings.steps,
            warmup_steps=settings.warmup_steps,
            schedule=settings.schedule,
            min_ratio=settings.min_learning_rate_ratio,
            decay_fraction=settings.decay_fraction,
        )
        optimizer.step()
        optimizer.zero_grad()

        tokens, seconds = sum(batch.num_targets for batch in batches), time.perf_counter() - started
        state.step += 1
        state.tokens += tokens
        state.seconds += seconds
        state.loader = loader.state_dict()
        after_step(Step(state.step, loss, norm, optimizer.learning_rate, tokens, seconds))


def _accumulate_gradients(model: Transformer, batches: Sequence[Batch], document_masks: bool) -> float:
    """Add the gradients of the mean loss over all targets of all batches; return that mean loss."""
    num_targets = sum(batch.num_targets for batch in batches)
    total = 0.0
    for batch in batches:
        # A sum of means, weighted so that every token counts the same.
        share = batch.num_targets / num_targets
        loss = model.loss(**_model_inputs(batch, document_masks)) * share
        loss.backward()
        total += loss.item()
    return total


def evaluate_loss(
    model: Transformer, loader: BatchSource, max_batches: int | None, document_masks: bool
) -> float:
    """Nats per token over the first sequences of the file: no randomness, the same batches every time."""
    nats, num_targets = 0.0, 0
    model.eval()
    with no_grad():
        for batch in loader.one_pass(max_batches):
            nats += model.loss(**_model_inputs(batch, document_masks)).item() * batch.num_targets
            num_targets += batch.num_targets
    model.train()
    return nats / num_targets


def _model_inputs(batch: Batch, document_masks: bool) -> dict[str, Any]:
    """The arguments of `Transformer.loss`; without document masks the model counts positions itself."""
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "labels": batch.labels}
    if document_masks:
        inputs |= {"position_ids": batch.position_ids, "packing": Packing.from_documents(batch.document_ids)}
    return inputs


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
