"""The stage `pretrain`: `transformers.Trainer` on packed rows of documents.

A row holds several documents; the library keeps them apart where it is given `position_ids` that begin anew, no attention mask and
no cache. The rows and the initial weights are those of levels 2 and 3.

    uv run v1 pretrain --config tiny
"""

from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, Trainer, TrainingArguments

from shared_data.evaluation.held_out import pretrained_metrics
from shared_data.model_files.compatibility import check_same_architecture, check_same_vocabulary
from shared_data.model_files.config import ModelConfig
from shared_data.model_files.folder import read_config
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from shared_data.training.data_loader import PackedDocuments, read_token_facts
from shared_data.training.training_run import Metrics
from v1_quick.inference.scoring import negative_log_probs
from v1_quick.models.checkpoint import model_options
from v1_quick.models.transformer import new_model
from v1_quick.pretrain.components.muon import make_optimizer
from v1_quick.pretrain.components.training import last_checkpoint, logged_metrics, trainer_arguments


def pretrain(settings: Settings, run: RunFolder) -> Metrics:
    """Train the model of the settings on the token files of the run; returns the metrics of the stage."""
    section, folder = settings.pretrain, run.stage("pretrain")
    train, validation = (PackedRows(settings, run, split) for split in ("train", "validation"))
    model = build_model(settings, run)
    arguments = TrainingArguments(
        **trainer_arguments(settings, "pretrain", run), include_num_input_tokens_seen=True
    )
    watched = range(min(len(validation), section.eval_batches * section.per_device_train_batch_size))
    trainer = Trainer(
        model,
        arguments,
        train_dataset=train,
        eval_dataset=torch.utils.data.Subset(validation, watched),
        processing_class=AutoTokenizer.from_pretrained(run.tokenizer.parent),
        optimizers=(make_optimizer(model, section), None),
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(arguments))
    trainer.evaluate()
    metrics = logged_metrics(trainer, folder)
    trainer.save_model(folder)
    metrics["parameters"] = model.num_parameters()
    metrics["epochs"] = metrics["tokens"] / len(train.documents.tokens)
    return metrics | pretrained_metrics(negative_log_probs, model, settings, run)


class PackedRows(Dataset):
    """The rows of a split as arguments of the model."""

    def __init__(self, settings: Settings, run: RunFolder, split: str) -> None:
        section, path = settings.pretrain, run.tokens(split)
        end = read_token_facts(path)["end_of_text_id"]
        self.documents = PackedDocuments(path, 1, section.sequence_length, end, section.seed)
        self.document_masks = section.document_masks

    def __len__(self) -> int:
        return self.documents.num_sequences

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.documents.read([index])
        labels = torch.from_numpy(row.labels[0])
        # The labels stand at the token before already: `shift_labels` says so, `labels` makes the model compute a loss.
        inputs = {
            "input_ids": torch.from_numpy(row.input_ids[0]),
            "labels": labels,
            "shift_labels": labels,
        }
        return inputs | (
            {"position_ids": torch.from_numpy(row.position_ids[0])} if self.document_masks else {}
        )


def build_model(settings: Settings, run: RunFolder) -> PreTrainedModel:
    """A new model of the settings, or that of `init_from`, which must have the same architecture and vocabulary."""
    facts = read_token_facts(run.tokens("train"))
    config = ModelConfig.from_settings(settings.model, facts["vocab_size"], facts["end_of_text_id"])
    if settings.pretrain.init_from is None:
        return new_model(config, settings.pretrain.seed, **model_options(settings))
    folder = Path(settings.pretrain.init_from)
    source = read_config(folder)
    check_same_vocabulary(folder, source.vocab_size, run.tokenizer, facts["vocab_size"])
    check_same_architecture(folder, source, config)
    dropout = {name: value for name, value in config.to_hf().items() if name.endswith(("drop", "dropout"))}
    return AutoModelForCausalLM.from_pretrained(folder, **model_options(settings), **dropout)
