"""The stage `sft`: TRL's `SFTTrainer` on conversations, packed, with the loss on the assistant's tokens only.

With adapters (`sft.adapter.method`) the trainer is given a `PeftModel`, for QLoRA on a base of 4 bits; the adapter is kept in `adapter/`,
and merged into the model that the stage leaves.

    uv run v1 sft --config tiny
"""

import shutil

from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedModel
from trl import SFTConfig, SFTTrainer

from shared_data.corpus.bad_records import BadRecords
from shared_data.evaluation.answers import evaluate_answers
from shared_data.inference.prompts import end_of_turn
from shared_data.model_files.folder import read_config
from shared_data.model_names import starting_model, tokenizer_of
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from shared_data.training.sft_data import open_messages
from shared_data.training.training_run import Metrics
from v1_quick.data_pipeline.tokenizer.tokenizer import ensure_chat_template, load_tokenizer
from v1_quick.inference.generate import generate
from v1_quick.inference.loading import folder_to_train, load_for_inference
from v1_quick.models.checkpoint import merge_adapter, model_options
from v1_quick.models.peft.lora import inject_lora
from v1_quick.models.peft.qlora import nf4_config
from v1_quick.pretrain.components.muon import make_optimizer
from v1_quick.pretrain.components.training import logged_metrics, train_and_evaluate, trainer_arguments


def sft(settings: Settings, run: RunFolder) -> Metrics:
    """Tune the pretrained model of the run on conversations; returns the metrics of the stage."""
    section, folder = settings.sft, run.stage("sft")
    tokenizer = load_tokenizer(tokenizer_of(run, "sft"))
    ensure_chat_template(tokenizer)
    base, adapted = load_base(settings, run), section.adapter.method != "none"
    model = inject_lora(base, section.adapter) if adapted else base
    bad = BadRecords(section.on_bad_record)
    max_length = min(section.max_length, model.config.max_position_embeddings)
    train, held_out = open_messages(settings, tokenizer, max_length, bad)
    arguments = SFTConfig(
        **trainer_arguments(settings, "sft", run),
        max_length=max_length,
        packing=True,
        router_aux_loss_coef=getattr(model.config, "router_aux_loss_coef", 0.0),
        assistant_only_loss=True,
        eos_token=tokenizer.decode(end_of_turn(tokenizer)),  # a chat model ends its turn, not the document
    )
    trainer = SFTTrainer(
        model,
        arguments,
        train_dataset=Dataset.from_list(train, on_mixed_types="use_json"),
        eval_dataset=Dataset.from_list(held_out, on_mixed_types="use_json"),
        processing_class=tokenizer,
        optimizers=(make_optimizer(model, section), None),
    )
    rows = min(len(trainer.eval_dataset), section.eval_batches * section.per_device_train_batch_size)
    trainer.eval_dataset = trainer.eval_dataset.select(range(rows))
    train_and_evaluate(trainer)
    metrics = logged_metrics(trainer, folder) | {"conversations": len(train)} | bad.metrics()
    metrics["trainable_parameters"] = model.num_parameters(only_trainable=True)
    shutil.rmtree(folder / "adapter", ignore_errors=True)  # of an earlier run
    trainer.save_model(folder / "adapter" if adapted else folder)
    if adapted:
        merged = merge_adapter(load_base(settings, run), folder / "adapter")
        merged.config.eos_token_id = merged.generation_config.eos_token_id = tokenizer.eos_token_id
        merged.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    before, after = (load_for_inference(settings, f) for f in (starting_model(run, "sft").folder, folder))
    return metrics | evaluate_answers(settings, run, generate, before, after, tokenizer)


def load_base(settings: Settings, run: RunFolder) -> PreTrainedModel:
    """The pretrained model, for QLoRA in 4 bits."""
    folder, options = folder_to_train(settings, run, "sft"), model_options(settings)
    if settings.sft.adapter.method == "qlora":
        options["quantization_config"] = nf4_config(settings.sft.adapter, read_config(folder))
    return AutoModelForCausalLM.from_pretrained(folder, **options)
