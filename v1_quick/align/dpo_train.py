"""The stage `dpo`: trl's `DPOTrainer` (Rafailov et al. 2023), with the tuned model as the reference.

Levels 2 and 3 write the trainer by hand; they also continue a run that was killed, which this one starts over.

    uv run v1 dpo --config tiny
"""

import tempfile
from typing import Any

from shared_data.preference_pairs import check_pairs

from shared_data.progress import progress
from shared_data.runs import RunFolder
from shared_data.settings import DpoSettings, Settings
from v1_quick.align.algorithms.log_probabilities import frozen_copy
from v1_quick.align.alignment_loop import _LOGGED, _AfterStep, _configure, _kept_configuration, _listen
from v1_quick.align.exam import take_exam
from v1_quick.align.preference_data import Preferences, open_preferences
from v1_quick.align.prompt_data import exam_prompts, open_reward
from v1_quick.align.rm_train import _even_batch
from v1_quick.data_pipeline.tokenizer.tokenizer import Tokenizer
from v1_quick.device import resolve_device
from v1_quick.finetune.chat_data import _library_tokenizer
from v1_quick.models.checkpoint import load_model, save_model

_METRICS = {
    name: name
    for name in (
        "rewards/chosen",
        "rewards/rejected",
        "rewards/accuracies",
        "rewards/margins",
        "logps/chosen",
        "logps/rejected",
    )
}


def dpo(settings: Settings, run: RunFolder) -> dict[str, float]:
    """Align the tuned model of the run with preference pairs; returns the numbers of the stage.

    Raises `UserError` for a record that is no pair or does not fit, a missing checkpoint, a diverged loss.
    """
    from trl import DPOConfig

    section = settings.dpo
    tokenizer = Tokenizer.load(run.tokenizer)
    device = resolve_device(settings.device)
    model = load_model(run.model("sft"), device=device)
    given, held_out = open_preferences(settings, "dpo", tokenizer)
    length = min(section.max_length, model.config.max_position_embeddings)
    for preferences in (given, held_out):
        check_pairs(preferences.pairs, length, preferences.names)
    folder = run.stage("dpo")  # only now: a wrong record leaves no trace
    losses = _losses(section)
    with (
        tempfile.TemporaryDirectory() as scratch,
        progress(section.steps, "dpo") as bar,
        _kept_configuration(model),
    ):
        trainer = _trainer_class()(
            model=model.library,
            ref_model=frozen_copy(model).library,
            args=_configure(
                DPOConfig,
                section,
                device,
                scratch,
                per_device_train_batch_size=section.batch_size,
                per_device_eval_batch_size=_even_batch(len(held_out.pairs), section),
                gradient_accumulation_steps=section.gradient_accumulation_steps,
                max_length=length,
                beta=section.beta,
                loss_type=list(losses),
                loss_weights=list(losses.values()),
                label_smoothing=section.label_smoothing,
                precompute_ref_log_probs=section.precompute_reference,
                disable_dropout=False,
            ),
            train_dataset=_dataset(given),
            eval_dataset=_dataset(held_out),
            processing_class=_library_tokenizer(tokenizer),
        )

        def evaluate() -> dict[str, float]:
            trainer.loss_weights = [1.0, 0.0][: len(losses)]  # without label smoothing, as at level 2
            found = trainer.evaluate()
            trainer.loss_weights = list(losses.values())
            return {
                "validation_loss": found["eval_loss"],
                "validation_accuracy": found["eval_rewards/accuracies"],
            }

        after_step = _AfterStep(settings, run, "dpo", bar, evaluate, shown=("loss", "rewards/accuracies"))
        _listen(trainer, after_step.heard, _LOGGED | _METRICS)
        trainer.train()
    model.eval()
    save_model(model, folder, run.tokenizer.parent)
    last = after_step.last()
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


def _losses(section: DpoSettings) -> dict[str, float]:
    """The trainer's losses by name, and how much each weighs.

    Its sigmoid loss s knows no label smoothing ε. But its robust loss is ((1-ε)·s - ε·f) / (1-2ε), where f is the loss of the
    pair turned round; so (2-2ε)·sigmoid - (1-2ε)·robust is (1-ε)·s + ε·f, which is what levels 2 and 3 compute.
    """
    smoothing = section.label_smoothing
    return (
        {section.loss_type: 2 - 2 * smoothing, "robust": 2 * smoothing - 1}
        if smoothing
        else {section.loss_type: 1.0}
    )


def _dataset(preferences: Preferences) -> Any:
    """Pairs as the trainer has them when it has tokenized them."""
    import datasets

    parts = zip(*preferences.pairs, strict=True)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return datasets.Dataset.from_dict(dict(zip(names, map(list, parts), strict=True)))


def _trainer_class() -> Any:
    """trl's trainer, which takes seconds to import."""
    from trl import DPOTrainer

    class Trainer(DPOTrainer):
        """Takes ids, as `RewardTrainer` does too. From messages it would make replies that end with the template's line break."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    return Trainer
