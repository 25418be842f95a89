"""The stage `reward`: trl's `RewardTrainer` on pairs of replies, and an exam on pairs that were held out.

Levels 2 and 3 write the trainer by hand; they also continue a run that was killed, which this one starts over.

    uv run v1 reward --config tiny
"""

import tempfile
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from shared_data.preference_pairs import check_pairs

from shared_data.files import write_json
from shared_data.progress import progress
from shared_data.runs import RunFolder
from shared_data.settings import PreferenceSettings, Settings
from v1_quick.align.algorithms.dpo import preference_batch
from v1_quick.align.alignment_loop import _LOGGED, _AfterStep, _configure, _listen
from v1_quick.align.preference_data import Preferences, open_preferences
from v1_quick.data_pipeline.tokenizer.tokenizer import Tokenizer
from v1_quick.device import resolve_device
from v1_quick.finetune.chat_data import _library_tokenizer
from v1_quick.models.checkpoint import load_model
from v1_quick.models.reward_model import RewardModel, save_reward_model
from v1_quick.pretrain.components.muon import choose_optimizer

_METRICS = {name: name for name in ("accuracy", "margin", "mean_reward", "min_reward", "max_reward")}


def reward(settings: Settings, run: RunFolder) -> dict[str, float]:
    """Train a reward model that starts from the tuned model of the run; returns the numbers of the stage.

    Raises `UserError` for a record that is no pair or does not fit, a missing checkpoint, a diverged loss.
    """
    from trl import RewardConfig, RewardTrainer

    section = settings.reward
    tokenizer = Tokenizer.load(run.tokenizer)
    device = resolve_device(settings.device)
    tuned = load_model(run.model("sft"), device=device)
    given, held_out = open_preferences(settings, "reward", tokenizer)
    length = min(section.max_length, tuned.config.max_position_embeddings)
    for preferences in (given, held_out):
        check_pairs(preferences.pairs, length, preferences.names)
    folder = run.stage("reward")  # only now: a wrong record leaves no trace
    model = RewardModel.from_transformer(tuned, section.seed).to(device)
    library_tokenizer = _library_tokenizer(tokenizer)
    center_coefficient = section.center_coefficient or None
    with tempfile.TemporaryDirectory() as scratch, progress(section.steps, "reward") as bar:
        trainer = RewardTrainer(
            model=model.library,
            args=_configure(
                RewardConfig,
                section,
                device,
                scratch,
                per_device_train_batch_size=section.batch_size,
                per_device_eval_batch_size=_even_batch(len(held_out.pairs), section),
                gradient_accumulation_steps=section.gradient_accumulation_steps,
                max_length=None,  # it would leave out what is longer; the dataset is cut instead
                center_rewards_coefficient=center_coefficient,
                disable_dropout=False,
            ),
            train_dataset=_dataset(given, length).add_column("margin", given.margins),
            eval_dataset=_dataset(held_out, length),
            processing_class=library_tokenizer,
            optimizers=(choose_optimizer(model.library, section), None),  # the schedule is the trainer's
        )

        def evaluate() -> dict[str, float]:
            trainer.args.center_rewards_coefficient = None  # the loss of the pairs alone, as at level 2
            found = trainer.evaluate()
            trainer.args.center_rewards_coefficient = center_coefficient
            return {"validation_loss": found["eval_loss"], "validation_accuracy": found["eval_accuracy"]}

        after_step = _AfterStep(settings, run, "reward", bar, evaluate, shown=("loss", "accuracy"))
        _listen(trainer, after_step.heard, _LOGGED | _METRICS)
        trainer.train()
    model.library.config.use_cache = True  # the Trainer turned it off
    save_reward_model(model, folder, run.tokenizer.parent)
    scores = _score_pairs(model, held_out, section.batch_size, library_tokenizer.pad_token_id, length)
    right = scores[:, 0] > scores[:, 1]
    by_reason: dict[str, list[bool]] = defaultdict(list)
    for reason, is_right in zip(held_out.reasons, right.tolist(), strict=True):
        by_reason[reason or "pairs"].append(is_right)
    write_json(
        folder / "accuracy.json", {reason: [sum(of), len(of)] for reason, of in sorted(by_reason.items())}
    )
    last = after_step.last()
    return {
        **{name: last[name] for name in ("steps", "tokens", "tokens_per_second", "loss")},
        "pairs": len(given.pairs),
        "test_pairs": len(held_out.pairs),
        "accuracy": float(right.mean()),
        "margin": float((scores[:, 0] - scores[:, 1]).mean()),
    }


def _dataset(preferences: Preferences, length: int) -> Any:
    """Pairs as the trainer has them when it has tokenized them: prompt and reply in one, cut off at the end."""
    import datasets

    chosen, rejected = ([[*pair[0], *pair[part]][:length] for pair in preferences.pairs] for part in (1, 2))
    return datasets.Dataset.from_dict({"chosen_ids": chosen, "rejected_ids": rejected})


def _even_batch(pairs: int, section: PreferenceSettings) -> int:
    """The largest batch that leaves no rest: the trainer takes the mean over batches, and means the mean over pairs."""
    return next(size for size in range(section.batch_size, 0, -1) if pairs % size == 0)


@torch.no_grad()
def _score_pairs(
    model: RewardModel, preferences: Preferences, batch_size: int, pad_id: int, length: int
) -> Float[np.ndarray, "P 2"]:
    """The scores of the chosen and of the rejected reply of every pair, in order."""
    model.eval()
    device, rows = next(model.parameters()).device, []
    for start in range(0, len(preferences.pairs), batch_size):
        batch = preference_batch(preferences.pairs[start : start + batch_size], pad_id, length)
        arrays = (batch.input_ids, batch.attention_mask)
        scores = model(*(torch.from_numpy(array).to(device) for array in arrays))
        rows.append(scores.view(2, -1).T.float().cpu().numpy())
    return np.concatenate(rows)
