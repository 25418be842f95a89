"""The stage `sft`: conversations in, an assistant out (supervised fine-tuning, Ouyang et al. 2022, section 3.1).

The loss is that of pretraining on other batches: packed conversations, in which only the assistant's tokens are labels. On the story
world the stage ends with held-out questions about stories, each answer compared with the right one. With adapters
(`sft.adapter.method`) only these train, on a frozen base, for QLoRA one of 4 bits; they are kept in `adapter/` as PEFT has them, and
merged into the model that the stage leaves.

Level 1: TRL's `SFTTrainer`; level 3: the same as here over NumPy.

    uv run v2 sft --config tiny
"""

import shutil
from functools import partial

import torch
from torch import Tensor

from shared_data.corpus.bad_records import BadRecords
from shared_data.device import resolve_device
from shared_data.evaluation.answers import evaluate_answers
from shared_data.model_names import starting_model
from shared_data.peft.config import LoraConfig, QuantizationConfig
from shared_data.peft.memory import memory_bytes
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from shared_data.tokenizer.tokenizer_file import save_template
from shared_data.training.data_loader import Batch
from shared_data.training.expert_load import load_metrics
from shared_data.training.parameter_groups import is_hidden
from shared_data.training.sft_data import open_conversations
from shared_data.training.training_run import Metrics
from v2_handwritten.data_pipeline.tokenizer.tokenizer import Tokenizer
from v2_handwritten.inference.generate import generate
from v2_handwritten.inference.loading import load_to_train
from v2_handwritten.models.checkpoint import save_model
from v2_handwritten.models.peft.adapters import merged_model, restore_adapter, save_adapter
from v2_handwritten.models.peft.lora import inject_lora
from v2_handwritten.models.peft.qlora import quantize_model
from v2_handwritten.models.transformer import Transformer
from v2_handwritten.pretrain.components.training import Training, evaluate_loss, model_inputs


def sft(settings: Settings, run: RunFolder) -> Metrics:
    """Tune the pretrained model of the run on conversations; returns the metrics of the stage.

    Raises `UserError` for a record that is no conversation or does not fit, a missing checkpoint, a diverged loss.
    """
    section, device = settings.sft, resolve_device(settings.device)
    model, tokenizer = model_to_tune(settings, run)
    positions, bad = model.config.max_position_embeddings, BadRecords(section.on_bad_record)
    train, validation = open_conversations(settings, tokenizer, positions, bad)
    mean_loss = torch.compile(model.loss) if section.torch_compile else model.loss

    def step(batch: Batch) -> tuple[Tensor, Metrics]:
        loss = mean_loss(**model_inputs(batch, device))
        return loss, load_metrics(model.expert_loads)

    folder, adapted = run.stage("sft"), section.adapter.method != "none"
    start = starting_model(run, "sft")
    metrics = Training("sft", settings, run).fit(
        model,
        train,
        step,
        save=partial(save_adapter, model, base_name=str(start.folder)) if adapted else None,
        load=partial(restore_adapter, model) if adapted else None,
        evaluate=partial(evaluate_loss, model, validation, section.eval_batches),
    )
    metrics |= {"conversations": len(train.examples)} | bad.metrics()
    metrics["trainable_parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    metrics["training_bytes"] = memory_bytes(model, is_hidden if section.optim == "muon" else None)["total"]
    shutil.rmtree(folder / "adapter", ignore_errors=True)  # of an earlier run
    if adapted:
        save_adapter(model, folder / "adapter", base_name=str(start.folder))
        model = merged_model(model)
    save_model(model, folder, start.tokenizer)
    save_template(folder, tokenizer.config)
    before, _ = load_to_train(settings, run, "sft")
    return metrics | evaluate_answers(settings, run, generate, before, model.eval(), tokenizer)


def model_to_tune(settings: Settings, run: RunFolder) -> tuple[Transformer, Tokenizer]:
    """The model that the stage starts from, with the adapters that the settings ask for, and its tokenizer."""
    model, tokenizer = load_to_train(settings, run, "sft")
    adapter = settings.sft.adapter
    if adapter.method == "qlora":
        quantize_model(
            model, QuantizationConfig(adapter.bnb_4bit_blocksize, adapter.bnb_4bit_use_double_quant)
        )
    if adapter.method != "none":
        inject_lora(model, LoraConfig.from_settings(adapter), settings.sft.seed)
    return model, tokenizer
