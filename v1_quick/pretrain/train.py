"""The stage `pretrain`: `transformers.Trainer` on packed rows of documents.

A row holds several documents; the library keeps them apart where `position_ids` begin anew and there is neither an attention mask nor
a cache. The rows and the initial weights are those of levels 2 and 3.

    uv run v1 pretrain --config tiny
"""

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, Trainer, TrainingArguments

from shared_data.evaluation.held_out import pretrained_metrics
from shared_data.model_files.compatibility import initial_config
from shared_data.model_files.config import ModelConfig
from shared_data.model_files.gguf import is_gguf
from shared_data.model_names import find_model
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from shared_data.training.data_loader import read_token_facts
from shared_data.training.training_run import Metrics
from v1_quick.data_pipeline.tokenizer.tokenizer import load_tokenizer
from v1_quick.inference.scoring import negative_log_probs
from v1_quick.models.checkpoint import load_model, model_options
from v1_quick.models.transformer import new_model
from v1_quick.pretrain.components.muon import make_optimizer
from v1_quick.pretrain.components.training import logged_metrics, train_and_evaluate, trainer_arguments
from v1_quick.pretrain.data_loader import PackedRows


def pretrain(settings: Settings, run: RunFolder) -> Metrics:
    """Train the model of the settings on the token files of the run; returns the metrics of the stage."""
    section, folder = settings.pretrain, run.stage("pretrain")
    train, validation = PackedRows(settings, run, "train"), PackedRows(settings, run, "validation")
    model, tokenizer = build_model(settings, run), load_tokenizer(run.tokenizer.parent)
    # Removing unused columns would take `shift_labels` away. The trainer gets no tokenizer, which would add an attention mask.
    options = trainer_arguments(settings, "pretrain", run) | {"remove_unused_columns": False}
    arguments = TrainingArguments(**options, include_num_input_tokens_seen=True)
    trainer = Trainer(
        model,
        arguments,
        train_dataset=train,
        eval_dataset=validation,
        optimizers=(make_optimizer(model, section), None),
    )
    train_and_evaluate(trainer)
    metrics = logged_metrics(trainer, folder)
    trainer.save_model(folder)
    tokenizer.save_pretrained(folder)
    metrics |= {"epochs": trainer.state.epoch, "parameters": model.num_parameters()}
    return metrics | pretrained_metrics(negative_log_probs, model, settings, run)


def build_model(settings: Settings, run: RunFolder) -> PreTrainedModel:
    """A new model of the settings, or that of `model_name_or_path`, which must have the vocabulary of the tokenizer."""
    facts = read_token_facts(run.tokens("train"))
    config = ModelConfig.from_settings(settings.model, facts["vocab_size"], facts["end_of_text_id"])
    if settings.pretrain.model_name_or_path is None:
        return new_model(config, settings.pretrain.seed, **model_options(settings))
    folder = find_model(run, settings.pretrain.model_name_or_path).folder
    # The library would fill missing tensors with random numbers, so the folder is checked first.
    config = AutoConfig.for_model(**initial_config(folder, config, run.tokenizer).to_hf())
    if is_gguf(folder):
        model = AutoModelForCausalLM.from_config(config, **model_options(settings))
        model.load_state_dict(load_model(folder).state_dict())
        return model
    return AutoModelForCausalLM.from_pretrained(folder, config=config, **model_options(settings))
