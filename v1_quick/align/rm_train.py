"""The stage `reward`: trl's `RewardTrainer` on preference pairs, measured on pairs that were held out.

uv run v1 reward --config tiny
"""

import torch
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer

from shared_data.corpus.bad_records import BadRecords
from shared_data.model_files.folder import read_config
from shared_data.model_files.initialization import initial_score
from shared_data.model_names import tokenizer_of
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from shared_data.training.training_run import Metrics
from v1_quick.align.preference_data import preference_datasets
from v1_quick.data_pipeline.tokenizer.tokenizer import load_tokenizer
from v1_quick.inference.loading import folder_to_train
from v1_quick.models.checkpoint import model_options
from v1_quick.pretrain.components.muon import make_optimizer
from v1_quick.pretrain.components.training import last_checkpoint, logged_metrics, trainer_arguments


def reward(settings: Settings, run: RunFolder) -> Metrics:
    """Train a reward model that starts from the tuned model of the run; returns the metrics of the stage."""
    section, folder = settings.reward, run.stage("reward")
    start = folder_to_train(settings, run, "reward")
    tokenizer = load_tokenizer(tokenizer_of(run, "reward"))
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # batches need one
    config, bad = read_config(start), BadRecords(section.on_bad_record)
    max_length = min(section.max_length, config.max_position_embeddings)
    train, held_out = preference_datasets(settings, "reward", tokenizer, max_length, bad)
    model = AutoModelForSequenceClassification.from_pretrained(start, num_labels=1, **model_options(settings))
    # The library draws the new head at random; with these numbers a run can be repeated, and compared with levels 2 and 3.
    model.score.weight.data.copy_(torch.from_numpy(initial_score(config, section.seed)))
    arguments = RewardConfig(
        **trainer_arguments(settings, "reward", run),
        max_length=max_length,  # longer pairs are left out
        center_rewards_coefficient=section.center_rewards_coefficient,
    )
    trainer = RewardTrainer(
        model,
        arguments,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        optimizers=(make_optimizer(model, section), None),
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(arguments))
    trainer.evaluate()
    metrics = logged_metrics(trainer, folder)
    trainer.save_model(folder)
    metrics |= bad.metrics() | {"pairs": len(trainer.train_dataset), "eval_pairs": len(trainer.eval_dataset)}
    if "records_cut" in metrics:
        metrics["records_too_long"] = metrics.pop("records_cut")
    return metrics | {name: metrics[f"eval_{name}"] for name in ("accuracy", "margin")}
