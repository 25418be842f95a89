"""The stage `sft`: TRL's `SFTTrainer` on conversations, loss on the assistant's tokens only, packed rows.

With adapters (`sft.adapter.method`) the trainer is given a `PeftModel`; they are kept in `adapter/`, and merged into the model
that the stage leaves. Levels 2 and 3 write the trainer by hand; they also continue a run that was killed, which this one starts
over.

    uv run v1 sft --config tiny
"""

import shutil
import tempfile
import warnings
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from transformers.pytorch_utils import Conv1D

from shared_data.corpus.conversations import read_conversations
from shared_data.errors import UserError
from shared_data.files import write_json
from shared_data.progress import progress
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from v1_quick.align.alignment_loop import (
    _LOGGED,
    Metrics,
    _AfterStep,
    _configure,
    _kept_configuration,
    _listen,
)
from v1_quick.data_pipeline.tokenizer.tokenizer import Tokenizer
from v1_quick.device import resolve_device
from v1_quick.evaluation.metrics.answers import answer_questions
from v1_quick.finetune.chat_data import _library_tokenizer, encode_conversation
from v1_quick.finetune.peft.adapters import load_adapter, save_adapter
from v1_quick.finetune.peft.lora import LoraConfig, inject_lora
from v1_quick.finetune.peft.qlora import QuantizationConfig, dequantize_nf4, memory_bytes, quantize_model
from v1_quick.models.checkpoint import load_model, save_model
from v1_quick.models.transformer import Transformer
from v1_quick.pretrain.components.muon import choose_optimizer

VALIDATION_PART = 20  # one conversation in so many is held out of training, to watch the loss


def sft(settings: Settings, run: RunFolder) -> dict[str, float | int | None]:
    """Tune the pretrained model of the run on conversations; returns the numbers of the stage.

    Raises `UserError` for a record that is no conversation or does not fit, a missing checkpoint, a diverged loss.
    """
    import datasets
    from trl import SFTConfig

    section = settings.sft
    tokenizer = Tokenizer.load(run.tokenizer)
    device = resolve_device(settings.device)
    if section.precision == "float16" and device.type == "cpu":
        raise UserError("the Trainer has float16 on GPUs only; use --set sft.precision=bfloat16, or level 2")
    model = _model_to_tune(settings, run, device)
    length = min(section.sequence_length, model.config.max_position_embeddings)
    told = read_conversations(settings.data, section.source, section.seed, section.lessons)
    records = []
    for where, messages in islice(told, section.conversations):
        # Names a record that is wrong; the trainer would not.
        encode_conversation(tokenizer, messages, length, where)
        records.append({"messages": messages})
    held_out = records[::VALIDATION_PART] if len(records) > 1 else records
    kept = [record for i, record in enumerate(records) if i % VALIDATION_PART] or records
    folder = run.stage("sft")  # only now: what is refused leaves no trace
    with (
        tempfile.TemporaryDirectory() as scratch,
        progress(section.steps, "sft") as bar,
        _kept_configuration(model),
    ):
        trainer = _trainer_class()(
            model=model.library,
            args=_configure(
                SFTConfig,
                section,
                device,
                scratch,
                per_device_train_batch_size=section.batch_size,
                per_device_eval_batch_size=section.batch_size,
                gradient_accumulation_steps=section.gradient_accumulation_steps,
                max_length=length,
                packing=True,
                assistant_only_loss=True,
                bf16=section.precision == "bfloat16",
                fp16=section.precision == "float16",
                activation_checkpointing=section.activation_checkpointing,
            ),
            train_dataset=datasets.Dataset.from_list(kept),
            eval_dataset=datasets.Dataset.from_list(held_out),
            processing_class=_library_tokenizer(tokenizer),
            optimizers=(choose_optimizer(model.library, section), None),  # the schedule is the trainer's
        )
        # Not an argument of the trainer: it wants to choose its collator itself.
        trainer.data_collator = _rows_apart(trainer.data_collator.pad_token_id)
        watched = min(len(trainer.eval_dataset), section.eval_batches * section.batch_size)
        trainer.eval_dataset = trainer.eval_dataset.select(range(watched))

        def evaluate() -> Metrics:
            return {"validation_loss": trainer.evaluate()["eval_loss"]}  # a mean of batches, not of tokens

        after_step = _AfterStep(settings, run, "sft", bar, evaluate)

        def heard(step: int, numbers: Metrics) -> None:
            after_step.heard(step, numbers | {"tokens": trainer.reply_tokens})

        _listen(trainer, heard, _LOGGED)
        trainer.train()
    memory = memory_bytes(model, section.optimizer)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    shutil.rmtree(folder / "adapter", ignore_errors=True)  # of an earlier run
    if section.adapter.method != "none":
        save_adapter(model, folder / "adapter", base_name=str(run.model("pretrain")))
        model = _merged(settings, run, model, folder / "adapter")
    ends = [tokenizer.special_tokens["<|im_end|>"], tokenizer.end_of_text_id]
    for configuration in (model.library.config, model.library.generation_config):
        configuration.eos_token_id = ends  # a chat model ends its turn, not the document
    save_model(model, folder, run.tokenizer.parent)
    last = after_step.last()
    return {
        "steps": last["steps"],
        "tokens": last["tokens"],
        "conversations": len(kept),
        "tokens_per_second": last["tokens_per_second"],
        "loss": last["loss"],
        "trainable_parameters": trainable,
        "training_bytes": memory["total"],
        **_exam(settings, run, model, tokenizer),
    }


def _model_to_tune(settings: Settings, run: RunFolder, device: torch.device) -> Transformer:
    """The pretrained model; with adapters, these on the frozen pretrained model."""
    model, adapter = load_model(run.model("pretrain"), device=device), settings.sft.adapter
    if adapter.method == "none":
        return model
    if adapter.method == "qlora":
        quantize_model(model, QuantizationConfig(adapter.block_size, adapter.double_quantization))
    targets = adapter.target_modules
    config = LoraConfig(
        adapter.rank,
        adapter.alpha,
        adapter.dropout,
        targets if isinstance(targets, str) else tuple(targets),
        adapter.use_rslora,
        adapter.use_dora,
        tuple(adapter.modules_to_save),
    )
    inject_lora(model, config, settings.sft.seed)
    return model


def _trainer_class() -> Any:
    """trl's trainer, which takes seconds to import."""
    from trl import SFTTrainer

    class Trainer(SFTTrainer):
        """Counts what is learned from: the tokens of replies, as levels 2 and 3 do; its own count is of all tokens."""

        reply_tokens = 0

        def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **keywords: Any) -> Any:
            if model.training:
                self.reply_tokens += int((inputs["labels"] != -100).sum())
            return super().compute_loss(model, inputs, *arguments, **keywords)

    return Trainer


def _rows_apart(pad_id: int) -> Any:
    """The trainer's collator, made to leave a batch its rows.

    The trainer would lay all rows of packed conversations into a single one, whose attention grows with the square of the batch.
    """
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    class RowsApart(DataCollatorForLanguageModeling):
        """Rows that are filled up; a position of 0 begins a document, so that each token of the filling is one of its own."""

        def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
            batch = super().torch_call(examples)
            del batch["attention_mask"]  # with one, transformers would take a row for a single document
            return batch

    return RowsApart(pad_token_id=pad_id, return_position_ids=True)


def _merged(settings: Settings, run: RunFolder, model: Transformer, adapter: Path) -> Transformer:
    """A plain model that computes what the adapted one does: PEFT's `merge_and_unload`, on the decoded base where that was quantized."""
    if settings.sft.adapter.method == "qlora":
        quantized: Any = model.library.get_base_model()
        model = load_model(run.model("pretrain"), device=model.library.device)
        for path, layer in quantized.named_modules():
            if isinstance(layer, Linear4bit):
                plain = model.library.get_submodule(path.removesuffix(".base_layer"))
                codes: Any = layer.weight
                weight = dequantize_nf4((codes.data, codes.quant_state))
                plain.weight.data.copy_(weight.T if isinstance(plain, Conv1D) else weight)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of GPT-2's layout, which PEFT finds out by itself
            load_adapter(model, adapter)
    library: Any = model.library
    model.library = library.merge_and_unload()
    return model


def _exam(settings: Settings, run: RunFolder, model: Transformer, tokenizer: Tokenizer) -> dict[str, float]:
    """Share of held-out questions that get exactly the right reply, before and after; the replies are kept in answers.json."""
    answers = run.stage("sft") / "answers.json"
    answers.unlink(missing_ok=True)  # of an earlier run, on other data
    if settings.data.source != "story_world":
        return {}
    from shared_data.story_world.tasks import questions

    tasks = list(islice(questions(settings.sft.seed, "test"), settings.sft.test_questions))
    before = load_model(run.model("pretrain"), device=model.library.device)
    first = answer_questions(before, tokenizer, tasks)
    last = answer_questions(model, tokenizer, tasks)
    write_json(answers, {"before": first.records, "after": last.records})
    return {
        "qa_accuracy_before": first.accuracy,
        "qa_accuracy": last.accuracy,
        "unanswerable_accuracy": last.by_kind.get("unanswerable", 0.0),
    }
