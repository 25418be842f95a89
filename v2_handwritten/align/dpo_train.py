"""Training by DPO on preference pairs: the reference's log-probabilities, the loss of a batch, the exam on held-out pairs.

The reference (algorithms/log_probabilities.py, `frozen_copy`) never changes. Live, it is asked again for each batch, which costs a
forward pass and keeps a second model in memory; or its two numbers for each pair are computed once, before the first step.
Both give the same bits, as its passes have no dropout.

Level 1: trl's `DPOTrainer`. Level 3: the same over its own autograd, the pairs shared out among threads.

    table = reference_log_probabilities(frozen_copy(model), loader)
    loss, metrics = dpo_batch_loss(model, batch := loader.next_batch(), table[loader.indices])
"""

from collections import Counter

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from v2_handwritten.align.algorithms.dpo import (
    LossType,
    PreferenceBatch,
    dpo_loss,
    sequence_log_probabilities,
)
from v2_handwritten.align.preference_data import PreferenceLoader
from v2_handwritten.models.transformer import Transformer


@torch.no_grad()
def batch_log_probabilities(model: Transformer, batch: PreferenceBatch) -> Float[np.ndarray, "B 2"]:
    """log π of the chosen and of the rejected reply of each pair, without gradients: what a reference is asked for."""
    return _log_probabilities(model, batch).view(2, -1).T.cpu().numpy()


def reference_log_probabilities(
    reference: Transformer, loader: PreferenceLoader
) -> Float[np.ndarray, "pairs 2"]:
    """`batch_log_probabilities` of all pairs of a loader, a row for each pair."""
    return np.concatenate([batch_log_probabilities(reference, batch) for batch in loader.one_pass()])


def dpo_batch_loss(
    model: Transformer,
    batch: PreferenceBatch,
    reference: Float[np.ndarray, "B 2"],
    beta: float = 0.1,
    loss_type: LossType = "sigmoid",
    label_smoothing: float = 0.0,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """Mean loss of the pairs of a batch, given the reference's log-probabilities of these pairs; metrics of `dpo_loss`."""
    found = _log_probabilities(model, batch)
    chosen, rejected = found.chunk(2)
    fixed_chosen, fixed_rejected = torch.from_numpy(reference).to(found).T
    lengths = torch.from_numpy(batch.reply_lengths).to(found.device).chunk(2)
    return dpo_loss(
        chosen, rejected, fixed_chosen, fixed_rejected, beta, loss_type, label_smoothing, *lengths
    )


@torch.no_grad()
def evaluate_dpo(
    model: Transformer,
    loader: PreferenceLoader,
    reference: Float[np.ndarray, "pairs 2"],
    beta: float = 0.1,
    loss_type: LossType = "sigmoid",
    max_batches: int | None = None,
) -> dict[str, float]:
    """`loss` and the metrics of `dpo_loss` over the pairs of a loader, each once; every pair counts the same."""
    was_training = model.training
    model.eval()
    totals: Counter[str] = Counter()
    for batch in loader.one_pass(max_batches):
        B = len(batch.input_ids) // 2
        loss, metrics = dpo_batch_loss(model, batch, reference[loader.indices], beta, loss_type)
        totals.update({"pairs": B, "loss": loss.item() * B})
        totals.update({name: value * B for name, value in metrics.items()})
    model.train(was_training)
    pairs = totals.pop("pairs")
    return {name: total / pairs for name, total in totals.items()}


def _log_probabilities(model: Transformer, batch: PreferenceBatch) -> Tensor:
    """log π of all 2B replies."""
    device = model.lm_head.weight.device
    arrays = (batch.input_ids, batch.reply_mask, batch.attention_mask)
    return sequence_log_probabilities(model, *(torch.from_numpy(array).to(device) for array in arrays))
