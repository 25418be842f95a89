"""The stage `reward`: a reward model from preference pairs, and its exam on pairs that were held out (Stiennon et al. 2020).

The model starts as the tuned language model with a new score in place of the output matrix. Both replies of a pair pass
through the model in one batch; the loss compares their scores (algorithms/reward_loss.md). What a step does with the loss,
and what surrounds the steps, stands in alignment_loop.py.

Level 1: trl's `RewardTrainer`. Level 2: the same over torch, whose kernels use all cores by themselves.

    uv run v3 reward --config tiny
"""

from collections import Counter, defaultdict
from functools import partial

import numpy as np
from jaxtyping import Float
from shared_data.training.training_state import find_checkpoint

from shared_data.files import write_json
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from v3_numpy_deep.align.algorithms.dpo import PreferenceBatch
from v3_numpy_deep.align.algorithms.reward_loss import reward_loss
from v3_numpy_deep.align.alignment_loop import preference_step, train_steps
from v3_numpy_deep.align.preference_data import PreferenceLoader, _pair_shards, open_preferences
from v3_numpy_deep.autograd import Array, Tensor, no_grad
from v3_numpy_deep.autograd.memory import keep_freed_memory
from v3_numpy_deep.autograd.parallel import data_parallel
from v3_numpy_deep.data_pipeline.tokenizer.tokenizer import Tokenizer
from v3_numpy_deep.device import resolve_device
from v3_numpy_deep.models.checkpoint import load_model
from v3_numpy_deep.models.reward_model import RewardModel, load_reward_model, save_reward_model
from v3_numpy_deep.pretrain.components.muon import choose_optimizer


def reward(settings: Settings, run: RunFolder) -> dict[str, float | int]:
    """Train a reward model that starts from the tuned model of the run; returns the numbers of the stage.

    Raises `UserError` for a record that is no pair or does not fit, a missing checkpoint, a diverged loss.
    """
    section = settings.reward
    tokenizer = Tokenizer.load(run.tokenizer)
    resolve_device(settings.device)
    tuned = load_model(run.model("sft"))
    given, held_out = open_preferences(settings, "reward", tokenizer)
    pad_id = tokenizer.special_tokens.get("<|pad|>", tokenizer.end_of_text_id)
    length = min(section.max_length, tuned.config.max_position_embeddings)
    loader = given.loader(section, pad_id, length)
    exam = held_out.loader(section, pad_id, length, shuffle=False)
    folder = run.stage("reward")  # only now: a wrong record leaves no trace
    checkpoint = find_checkpoint(folder / "state", run.fingerprint("reward"), section.resume)
    model = load_reward_model(checkpoint) if checkpoint else RewardModel.from_transformer(tuned, section.seed)
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
) -> tuple[Tensor, dict[str, float]]:
    """Mean loss of the pairs of a batch, by how much each chosen reply should be ahead, and the metrics of `reward_loss`."""
    keep_freed_memory()
    B = len(batch.input_ids) // 2
    scores = np.empty(2 * B, model.score.weight.dtype)

    def loss_of(rows: Array) -> Tensor:
        found = model(batch.input_ids[rows], batch.attention_mask[rows])
        scores[rows] = found.data
        half = len(rows) // 2
        margin = None if margins is None else margins[rows[:half]].astype(scores.dtype)
        return reward_loss(found[:half], found[half:], margin, center_coefficient)[0]

    parts = _pair_shards(B, model)
    weights = [len(rows) / (2 * B) for rows in parts]
    loss = data_parallel(loss_of, parts, weights, list(model.parameters()))
    _, metrics = reward_loss(Tensor(scores[:B]), Tensor(scores[B:]))
    return loss, metrics


def evaluate_reward_model(
    model: RewardModel, loader: PreferenceLoader, max_batches: int | None = None
) -> dict[str, float]:
    """`loss`, `accuracy` and `margin` over the pairs of a loader, each once; every pair counts the same."""
    was_training = model.training
    model.eval()
    totals: Counter[str] = Counter()
    for batch in loader.one_pass(max_batches):
        B = len(batch.input_ids) // 2
        with no_grad():
            loss, metrics = reward_batch_loss(model, batch)
        totals.update({"pairs": B, "loss": loss.item() * B})
        totals.update({name: metrics[name] * B for name in ("accuracy", "margin")})
    model.train(was_training)
    return {name: totals[name] / totals["pairs"] for name in ("loss", "accuracy", "margin")}


def score_pairs(model: RewardModel, loader: PreferenceLoader) -> Float[np.ndarray, "P 2"]:
    """The scores of the chosen and of the rejected reply of every pair of a loader, in order."""
    was_training = model.training
    model.eval()
    rows = []
    for batch in loader.one_pass():
        with no_grad():
            scores = model(batch.input_ids, batch.attention_mask).data
        rows.append(scores.reshape(2, -1).T)
    model.train(was_training)
    return np.concatenate(rows)
