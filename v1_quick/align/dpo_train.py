"""The stage `dpo`: trl's `DPOTrainer` (Rafailov et al. 2023), with the tuned model as the reference.

TRL's sigmoid loss has no label smoothing; levels 2 and 3 have it.

    uv run v1 dpo --config tiny
"""

from trl import DPOConfig, DPOTrainer

from shared_data.alignment.policy_evaluation import evaluate_policy
from shared_data.alignment.prompts import evaluation_prompts
from shared_data.alignment.rewards import open_reward
from shared_data.corpus.bad_records import BadRecords
from shared_data.errors import UserError
from shared_data.model_names import starting_model
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from shared_data.training.training_run import Metrics
from v1_quick.align.policy import as_policy
from v1_quick.align.preference_data import preference_datasets
from v1_quick.inference.loading import load_for_inference, load_to_train
from v1_quick.pretrain.components.muon import make_optimizer
from v1_quick.pretrain.components.training import last_checkpoint, logged_metrics, trainer_arguments


def dpo(settings: Settings, run: RunFolder) -> Metrics:
    """Align the tuned model of the run with preference pairs; returns the metrics of the stage."""
    section, folder = settings.dpo, run.stage("dpo")
    if section.label_smoothing:
        raise UserError("level 1 has no dpo.label_smoothing; leave it out, or use level 2")
    model, tokenizer = load_to_train(settings, run, "dpo")
    positions, bad = model.config.max_position_embeddings, BadRecords(section.on_bad_record)
    max_length = min(section.max_length, positions)
    train, held_out = preference_datasets(settings, "dpo", tokenizer, max_length, bad)
    # What a completion of a user's own prompt is worth is not known.
    on_stories = section.source == "story_world"
    prompts = evaluation_prompts(settings, "dpo", tokenizer, positions) if on_stories else []
    arguments = DPOConfig(
        **trainer_arguments(settings, "dpo", run),
        max_length=max_length,
        beta=section.beta,
        router_aux_loss_coef=0.0,
        loss_type=[section.loss_type],
        precompute_ref_log_probs=section.precompute_ref_log_probs,
    )
    trainer = DPOTrainer(
        model,
        args=arguments,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        optimizers=(make_optimizer(model, section), None),
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(arguments))
    trainer.evaluate()
    metrics = logged_metrics(trainer, folder)
    trainer.save_model(folder)
    metrics |= bad.metrics() | {"pairs": len(train), "accuracy": metrics["eval_rewards/accuracies"]}
    if not prompts:
        return metrics
    folders = (folder, starting_model(run, "dpo").folder)
    policy, reference = (as_policy(load_for_inference(settings, each), tokenizer) for each in folders)
    reward = open_reward("story_world")
    return metrics | evaluate_policy(settings, run, "dpo", policy, reference, prompts, reward)
