"""The stage `sft`: TRL's `SFTTrainer` on conversations, packed, with the loss on the assistant's tokens only.

With adapters (`sft.adapter.method`) PEFT's `LoraConfig`, for QLoRA on a base that `BitsAndBytesConfig` stores in 4 bits; the adapter
is kept in `adapter/`, and merged into the model that the stage leaves. transformers has no setting for the block size of 4-bit
weights; here it is bitsandbytes' 64.

    uv run v1 sft --config tiny
"""

import shutil
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel
from trl import SFTConfig, SFTTrainer

from shared_data.errors import UserError
from shared_data.evaluation.answers import evaluate_answers
from shared_data.model_files.folder import read_config
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from shared_data.training.chat_data import check_conversation, split_conversations
from shared_data.training.training_run import Metrics
from v1_quick.inference.generate import generate
from v1_quick.models.checkpoint import load_model, model_options
from v1_quick.pretrain.components.muon import make_optimizer
from v1_quick.pretrain.components.training import last_checkpoint, logged_metrics, trainer_arguments


def sft(settings: Settings, run: RunFolder) -> Metrics:
    """Tune the pretrained model of the run on conversations; returns the metrics of the stage."""
    section, folder = settings.sft, run.stage("sft")
    tokenizer = AutoTokenizer.from_pretrained(run.tokenizer.parent)
    train, held_out = split_conversations(settings)
    for where, messages in [*train, *held_out]:
        check_conversation(messages, tokenizer.get_added_vocab(), where)
    model = model_to_tune(settings, run)
    arguments = SFTConfig(
        **trainer_arguments(settings, "sft", run),
        max_length=min(section.max_length, model.config.max_position_embeddings),
        packing=True,
        assistant_only_loss=True,
        eos_token="<|im_end|>",  # a chat model ends its turn, not the document
    )
    trainer = SFTTrainer(
        model,
        arguments,
        train_dataset=Dataset.from_list([{"messages": messages} for _, messages in train]),
        eval_dataset=Dataset.from_list([{"messages": messages} for _, messages in held_out]),
        processing_class=tokenizer,
        optimizers=(make_optimizer(model, section), None),
    )
    rows = min(len(trainer.eval_dataset), section.eval_batches * section.per_device_train_batch_size)
    trainer.eval_dataset = trainer.eval_dataset.select(range(rows))
    trainer.train(resume_from_checkpoint=last_checkpoint(arguments))
    trainer.evaluate()
    metrics = logged_metrics(trainer, folder)
    metrics["conversations"] = len(train)
    metrics["trainable_parameters"] = model.num_parameters(only_trainable=True)
    shutil.rmtree(folder / "adapter", ignore_errors=True)  # of an earlier run
    if section.adapter.method == "none":
        trainer.save_model(folder)
    else:
        trainer.save_model(folder / "adapter")
        base = AutoModelForCausalLM.from_pretrained(run.model("pretrain"), **base_options(settings, run))
        plain = base.dequantize() if section.adapter.method == "qlora" else base
        PeftModel.from_pretrained(plain, folder / "adapter").merge_and_unload().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    before, after = load_model(run.model("pretrain")), load_model(folder)
    return metrics | evaluate_answers(settings, run, generate, before, after, tokenizer)


def model_to_tune(settings: Settings, run: RunFolder) -> PreTrainedModel | PeftModel:
    """The pretrained model, with the adapters that the settings ask for."""
    adapter = settings.sft.adapter
    model = AutoModelForCausalLM.from_pretrained(run.model("pretrain"), **base_options(settings, run))
    if adapter.method == "none":
        return model
    names = {"r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora"}
    config = LoraConfig(
        **adapter.model_dump(include=names),
        modules_to_save=adapter.modules_to_save or None,
        ensure_weight_tying=bool(adapter.modules_to_save) and model.config.tie_word_embeddings,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def base_options(settings: Settings, run: RunFolder) -> dict[str, Any]:
    """Arguments of `from_pretrained` for the model under adapters, for QLoRA stored in 4 bits (NF4)."""
    adapter = settings.sft.adapter
    if adapter.method != "qlora":
        return model_options(settings)
    if adapter.bnb_4bit_blocksize != 64:
        raise UserError(
            "transformers stores 4-bit weights in blocks of 64; leave sft.adapter.bnb_4bit_blocksize out, or use level 2"
        )
    sizes = read_config(run.model("pretrain"))
    if sizes.hidden_size % 64 or sizes.intermediate_size % 64:
        raise UserError(
            "bitsandbytes 0.50 decodes a row that ends inside a block of 64 wrongly on a CPU; use sizes that are multiples of 64"
        )
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=adapter.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=torch.float32,
    )
    return model_options(settings) | {"quantization_config": quantization}
