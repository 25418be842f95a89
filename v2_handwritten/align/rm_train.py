"""The stage `reward`: a reward model from preference pairs, and its exam on pairs that were held out (Stiennon et al. 2020).

The model starts as the tuned language model with a new score in place of the output matrix. Both replies of a pair pass
through the model in one batch; the loss compares their scores (algorithms/reward_loss.md). What a step does with the loss,
and what surrounds the steps, stands in alignment_loop.py.

Level 1: trl's `RewardTrainer`. Level 3: the same over its own autograd, the pairs shared out among threads.

    uv run v2 reward --config tiny
"""

from collections import Counter, defaultdict
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from shared_data.files import write_json
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from v2_handwritten.align.algorithms.dpo import PreferenceBatch
from v2_handwritten.align.algorithms.reward_loss import reward_loss
from v2_handwritten.align.alignment_loop import preference_step, train_steps
from v2_handwritten.align.preference_data import PreferenceLoader, open_preferences
from v2_handwritten.data_pipeline.tokenizer.tokenizer import Tokenizer
from v2_handwritten.device import resolve_device
from v2_handwritten.models.checkpoint import load_model
from v2_handwritten.models.reward_model import RewardModel, load_reward_model, save_reward_model
from v2_handwritten.pretrain.components.muon import choose_optimizer
from v2_handwritten.pretrain.components.training_state import find_checkpoint


def reward(settings: Settings, run: RunFolder) -> dict[str, float | int]:
    """Train a reward model that starts from the tuned model of the run; returns the numbers of the stage.

    Raises `UserError` for a record that is no pair or does not fit, a missing checkpoint, a diverged loss.
    """
    section = settings.reward
    tokenizer = Tokenizer.load(run.tokenizer)
    device = resolve_device(settings.device)
    tuned = load_model(run.checkpoint("sft")).to(device)
    given, held_out = open_preferences(settings, "reward", tokenizer)
    pad_id = tokenizer.special_tokens.get("<|pad|>", tokenizer.end_of_text_id)
    length = min(section.max_length, tuned.config.max_position_embeddings)
    loader = given.loader(section, pad_id, length)
    exam = held_out.loader(section, pad_id, length, shuffle=False)
    folder = run.stage("reward")  # only now: a wrong record leaves no trace
    checkpoint = find_checkpoint(folder / "state", run.fingerprint("reward"), section.resume)
    model = load_reward_model(checkpoint) if checkpoint else RewardModel.from_transformer(tuned, section.seed)
    model.to(device)
    optimizer = choose_optimizer(model, section)

    def batch_loss(batch: PreferenceBatch) -> tuple[Tensor, dict[str, float]]:
        margins = given.margins[loader.indices]
        return reward_batch_loss(model, batch, section.center_coefficient, margins if margins.any() else None)

    def evaluate() -> dict[str, float]:
        found = evaluate_reward_model(model, exam)
        return {"validation_loss": found["loss"], "validation_accuracy": found["accuracy"]}

    last = train_steps(
        settings,
        run,
        "reward",
        optimizer,
        checkpoint,
        partial(preference_step, model, optimizer, loader, batch_loss, section),
        partial(save_reward_model, model, tokenizer_folder=run.tokenizer.parent),
        loader,
        evaluate,
        shown=("loss", "accuracy"),
    )
    save_reward_model(model, folder, run.tokenizer.parent)
    scores = score_pairs(model, exam)
    right = scores[:, 0] > scores[:, 1]
    by_reason: dict[str, list[bool]] = defaultdict(list)
    for reason, is_right in zip(held_out.reasons, right.tolist(), strict=True):
        by_reason[reason or "pairs"].append(is_right)
    write_json(
        folder / "accuracy.json", {reason: [sum(of), len(of)] for reason, of in sorted(by_reason.items())}
    )
    return {
        **{name: last[name] for name in ("steps", "tokens", "tokens_per_second", "loss")},
        "pairs": len(given.pairs),
        "test_pairs": len(held_out.pairs),
        "accuracy": float(right.mean()),
        "margin": float((scores[:, 0] - scores[:, 1]).mean()),
    }


def reward_batch_loss(
    model: RewardModel,
    batch: PreferenceBatch,
    center_coefficient: float = 0.0,
    margins: Float[np.ndarray, " B"] | None = None,
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """Mean loss of the pairs of a batch, by how much each chosen reply should be ahead, and the metrics of `reward_loss`."""
    device = model.score.weight.device
    input_ids, attention_mask = (
        torch.from_numpy(array).to(device) for array in (batch.input_ids, batch.attention_mask)
    )
    chosen, rejected = model(input_ids, attention_mask).chunk(2)
    margin = None if margins is None else torch.from_numpy(margins).to(chosen)
    return reward_loss(chosen, rejected, margin, center_coefficient)


@torch.no_grad()
def evaluate_reward_model(
    model: RewardModel, loader: PreferenceLoader, max_batches: int | None = None
) -> dict[str, float]:
    """`loss`, `accuracy` and `margin` over the pairs of a loader, each once; every pair counts the same."""
    was_training = model.training
    model.eval()
    totals: Counter[str] = Counter()
    for batch in loader.one_pass(max_batches):
        B = len(batch.input_ids) // 2
        loss, metrics = reward_batch_loss(model, batch)
        totals.update({"pairs": B, "loss": loss.item() * B})
        totals.update({name: metrics[name] * B for name in ("accuracy", "margin")})
    model.train(was_training)
    return {name: totals[name] / totals["pairs"] for name in ("loss", "accuracy", "margin")}


@torch.no_grad()
def score_pairs(model: RewardModel, loader: PreferenceLoader) -> Float[np.ndarray, "P 2"]:
    """The scores of the chosen and of the rejected reply of every pair of a loader, in order."""
    was_training = model.training
    model.eval()
    device, rows = model.score.weight.device, []
    for batch in loader.one_pass():
        arrays = (batch.input_ids, batch.attention_mask)
        scores = model(*(torch.from_numpy(array).to(device) for array in arrays))
        rows.append(scores.view(2, -1).T.cpu().numpy())
    model.train(was_training)
    return np.concatenate(rows)
