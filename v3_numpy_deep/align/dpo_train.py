"""The stage `dpo`: a policy from preference pairs, without a reward model and without sampling (Rafailov et al. 2023).

The reference (algorithms/log_probabilities.py, `frozen_copy`) never changes. Live, it is asked again for each batch, which costs a
forward pass and keeps a second model in memory; or its two numbers for each pair are computed once, before the first step.
Both give the same numbers up to rounding, as its passes have no dropout.

Level 1: trl's `DPOTrainer`. Level 2: the same over torch, whose kernels use all cores by themselves.

    uv run v3 dpo --config tiny
"""

from collections import Counter
from functools import partial

import numpy as np
from jaxtyping import Float
from shared_data.training.training_state import find_checkpoint

from shared_data.runs import RunFolder
from shared_data.settings import Settings
from v3_numpy_deep.align.algorithms.dpo import (
    LossType,
    PreferenceBatch,
    dpo_loss,
    sequence_log_probabilities,
)
from v3_numpy_deep.align.algorithms.log_probabilities import frozen_copy
from v3_numpy_deep.align.alignment_loop import make_optimizer, preference_step, train_steps
from v3_numpy_deep.align.exam import take_exam
from v3_numpy_deep.align.preference_data import PreferenceLoader, _pair_shards, open_preferences
from v3_numpy_deep.align.prompt_data import exam_prompts, open_reward
from v3_numpy_deep.autograd import Array, Tensor, no_grad
from v3_numpy_deep.autograd.memory import keep_freed_memory
from v3_numpy_deep.autograd.parallel import data_parallel
from v3_numpy_deep.data_pipeline.tokenizer.tokenizer import Tokenizer
from v3_numpy_deep.device import resolve_device
from v3_numpy_deep.models.checkpoint import load_model, save_model
from v3_numpy_deep.models.transformer import Transformer
from v3_numpy_deep.pretrain.components.optimizers import parameter_groups


def dpo(settings: Settings, run: RunFolder) -> dict[str, float | int]:
    """Align the tuned model of the run with preference pairs; returns the numbers of the stage.

    Raises `UserError` for a record that is no pair or does not fit, a missing checkpoint, a diverged loss.
    """
    section = settings.dpo
    tokenizer = Tokenizer.load(run.tokenizer)
    resolve_device(settings.device)
    reference = frozen_copy(load_model(run.model("sft")))
    given, held_out = open_preferences(settings, "dpo", tokenizer)
    pad_id = tokenizer.special_tokens.get("<|pad|>", tokenizer.end_of_text_id)
    length = min(section.max_length, reference.config.max_position_embeddings)
    loader = given.loader(section, pad_id, length)
    exam = held_out.loader(section, pad_id, length, shuffle=False)
    folder = run.stage("dpo")  # only now: a wrong record leaves no trace
    checkpoint = find_checkpoint(folder / "state", run.fingerprint("dpo"), section.resume)
    model = load_model(checkpoint or run.model("sft"))
    optimizer = make_optimizer(parameter_groups(model, section.weight_decay), section)
    options = (section.beta, section.loss_type)
    table = reference_log_probabilities(reference, loader) if section.precompute_reference else None
    exam_table = reference_log_probabilities(reference, exam)

    def batch_loss(batch: PreferenceBatch) -> tuple[Tensor, dict[str, float]]:
        fixed = batch_log_probabilities(reference, batch) if table is None else table[loader.indices]
        return dpo_batch_loss(model, batch, fixed, *options, section.label_smoothing)

    def evaluate() -> dict[str, float]:
        found = evaluate_dpo(model, exam, exam_table, *options)
        return {"validation_loss": found["loss"], "validation_accuracy": found["rewards/accuracies"]}

    last = train_steps(
        settings,
        run,
        "dpo",
        optimizer,
        checkpoint,
        partial(preference_step, model, optimizer, loader, batch_loss, section),
        partial(save_model, model, tokenizer_folder=run.tokenizer.parent),
        loader,
        evaluate,
        shown=("loss", "rewards/accuracies"),
    )
    model.eval()
    save_model(model, folder, run.tokenizer.parent)
    numbers = {
        **{name: last[name] for name in ("steps", "tokens", "tokens_per_second", "loss")},
        "pairs": len(given.pairs),
        "accuracy": last["validation_accuracy"],
    }
    (folder / "replies.json").unlink(missing_ok=True)  # of an earlier run, on other pairs
    if section.source != "story_world":  # nobody knows what a reply to a user's own prompt is worth
        return numbers
    prompts = exam_prompts(settings, "dpo")
    return numbers | take_exam(settings, run, "dpo", model, tokenizer, prompts, open_reward("story_world"))


def batch_log_probabilities(model: Transformer, batch: PreferenceBatch) -> Float[np.ndarray, "B 2"]:
    """log π of the chosen and of the rejected reply of each pair, without gradients: what a reference is asked for."""
    with no_grad():
        return _log_probabilities(model, batch, np.arange(len(batch.input_ids))).data.reshape(2, -1).T


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
) -> tuple[Tensor, dict[str, float]]:
    """Mean loss of the pairs of a batch, given the reference's log-probabilities of these pairs; metrics of `dpo_loss`."""
    keep_freed_memory()
    B = len(batch.input_ids) // 2
    values = np.empty(2 * B, model.lm_head.weight.dtype)
    fixed = reference.astype(values.dtype).T.reshape(-1)  # like the rows of the batch, the chosen ones first

    def loss_and_metrics(found: Tensor, rows: Array) -> tuple[Tensor, dict[str, float]]:
        half, lengths = len(rows) // 2, batch.reply_lengths[rows]
        pairs = (found[:half], found[half:], fixed[rows[:half]], fixed[rows[half:]])
        return dpo_loss(*pairs, beta, loss_type, label_smoothing, lengths[:half], lengths[half:])

    def loss_of(rows: Array) -> Tensor:
        found = _log_probabilities(model, batch, rows)
        values[rows] = found.data
        return loss_and_metrics(found, rows)[0]

    parts = _pair_shards(B, model)
    weights = [len(rows) / (2 * B) for rows in parts]
    loss = data_parallel(loss_of, parts, weights, list(model.parameters()))
    _, metrics = loss_and_metrics(Tensor(values), np.arange(2 * B))
    return loss, metrics


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
        with no_grad():
            loss, metrics = dpo_batch_loss(model, batch, reference[loader.indices], beta, loss_type)
        totals.update({"pairs": B, "loss": loss.item() * B})
        totals.update({name: value * B for name, value in metrics.items()})
    model.train(was_training)
    pairs = totals.pop("pairs")
    return {name: total / pairs for name, total in totals.items()}


def _log_probabilities(model: Transformer, batch: PreferenceBatch, rows: Array) -> Tensor:
    """log π of the replies in these rows."""
    arrays = (batch.input_ids, batch.reply_mask, batch.attention_mask)
    return sequence_log_probabilities(model, *(array[rows] for array in arrays))
