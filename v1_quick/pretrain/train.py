"""The stage `pretrain`: `transformers.Trainer` on packed rows of documents.

A row holds several documents; the library keeps them apart where `position_ids` begin anew and there is neither an attention mask nor
a cache. The rows and the initial weights are those of levels 2 and 3.

    uv run v1 pretrain --config tiny
"""

from pathlib import Path

from torch.utils.data import Subset
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainingArguments
from transformers import default_data_collator as stack_rows

from shared_data.evaluation.held_out import pretrained_metrics
from shared_data.model_files.compatibility import check_same_architecture, check_same_vocabulary
from shared_data.model_files.config import ModelConfig
from shared_data.model_files.folder import find_tensors, read_config
from shared_data.model_files.initialization import parameter_shapes
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from shared_data.training.data_loader import read_token_facts
from shared_data.training.training_run import Metrics
from v1_quick.data_pipeline.tokenizer.tokenizer import load_tokenizer
from v1_quick.inference.scoring import negative_log_probs
from v1_quick.models.checkpoint import model_options
from v1_quick.models.transformer import new_model
from v1_quick.pretrain.components.muon import make_optimizer
from v1_quick.pretrain.components.training import last_checkpoint, logged_metrics, trainer_arguments
from v1_quick.pretrain.data_loader import PackedRows


def pretrain(settings: Settings, run: RunFolder) -> Metrics:
    """Train the model of the settings on the token files of the run; returns the metrics of the stage."""
    section, folder = settings.pretrain, run.stage("pretrain")
    train, validation = (PackedRows(settings, run, split) for split in ("train", "validation"))
    eval_rows = min(len(validation), section.eval_batches * section.per_device_train_batch_size)
    model, tokenizer = build_model(settings, run), load_tokenizer(run.tokenizer.parent)
    arguments = TrainingArguments(
        **trainer_arguments(settings, "pretrain", run),
        include_num_input_tokens_seen=True,
        remove_unused_columns=False,  # it would take `shift_labels` away
    )
    trainer = Trainer(
        model,
        arguments,
        data_collator=stack_rows,  # the tokenizer's own would add an attention mask
        train_dataset=train,
        eval_dataset=Subset(validation, range(eval_rows)),
        processing_class=tokenizer,
        optimizers=(make_optimizer(model, section), None),
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(arguments))
    trainer.evaluate()
    metrics = logged_metrics(trainer, folder)
    trainer.save_model(folder)
    epochs = metrics["tokens"] / len(train.documents.tokens)
    metrics |= {"parameters": model.num_parameters(), "epochs": epochs}
    return metrics | pretrained_metrics(negative_log_probs, model, settings, run)


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
    # The library would fill missing tensors with random numbers.
    find_tensors(folder, source, parameter_shapes(source))
    dropout = {name: value for name, value in config.to_hf().items() if name.endswith(("drop", "dropout"))}
    return AutoModelForCausalLM.from_pretrained(folder, **model_options(settings), **dropout)
