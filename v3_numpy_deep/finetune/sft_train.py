"""The stage `sft`: conversations in, an assistant out (supervised fine-tuning, Ouyang et al. 2022, section 3.1).

The training is that of pretraining (pretrain/components/training_loop.py) on other batches: packed conversations, in which only
the assistant's tokens are labels. On the story world the stage ends with an exam: questions about stories that no training
conversation told of, each reply compared with the right one. With adapters (`sft.adapter.method`) only these train, on a frozen
base, for QLoRA one of 4 bits; they are kept in `adapter/` as PEFT has them, and merged into the model that the stage leaves.

Level 1: TRL's `SFTTrainer`; level 2: the same as here over torch.

    uv run v3 sft --config tiny
"""

import random
import shutil
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from shared_data.corpus.conversations import read_conversations
from shared_data.evaluation.answers import answer_questions
from shared_data.files import write_json
from shared_data.metrics_log import MetricsLog
from shared_data.peft.adapted_model import merged_state_dict
from shared_data.peft.config import LoraConfig, QuantizationConfig
from shared_data.peft.memory import memory_bytes
from shared_data.progress import progress
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from shared_data.training.chat_data import PackedConversations, encode_conversation
from shared_data.training.training_state import (
    StopRequest,
    TrainingState,
    clear_training_states,
    find_checkpoint,
    load_training_state,
)
from v3_numpy_deep.data_pipeline.tokenizer.tokenizer import Tokenizer
from v3_numpy_deep.device import resolve_device
from v3_numpy_deep.inference.generate import generate
from v3_numpy_deep.models.checkpoint import load_model, save_model
from v3_numpy_deep.models.peft.adapters import load_adapter, save_adapter
from v3_numpy_deep.models.peft.lora import inject_lora
from v3_numpy_deep.models.peft.qlora import quantize_model
from v3_numpy_deep.models.transformer import Transformer
from v3_numpy_deep.pretrain.components.after_step import AfterStep
from v3_numpy_deep.pretrain.components.muon import choose_optimizer, is_hidden
from v3_numpy_deep.pretrain.components.training_loop import evaluate_loss, train

VALIDATION_PART = 20  # one conversation in so many is held out of training, to watch the loss


def sft(settings: Settings, run: RunFolder) -> dict[str, float | int | None]:
    """Tune the pretrained model of the run on conversations; returns the numbers of the stage.

    Raises `UserError` for a record that is no conversation or does not fit, a missing checkpoint, a diverged loss.
    """
    section = settings.sft
    tokenizer = Tokenizer.load(run.tokenizer)
    model = model_to_tune(settings, run, None)
    loader, validation = open_conversations(settings, tokenizer, model.config.max_position_embeddings)
    folder = run.stage("sft")  # only now: a wrong record or setting leaves no trace
    checkpoint = find_checkpoint(folder / "state", run.fingerprint("sft"), section.resume)
    if checkpoint:
        model = model_to_tune(settings, run, checkpoint)
    resolve_device(settings.device)

    optimizer = choose_optimizer(model, section)
    state = TrainingState()
    if checkpoint:
        state = load_training_state(checkpoint, optimizer)
        loader.load_state_dict(state.loader)
    else:
        clear_training_states(folder / "state")
    log = MetricsLog(folder / "metrics_log.jsonl")
    log.truncate_after(state.step)

    with progress(section.steps, "sft", done=state.step) as bar, StopRequest() as stop:
        after_step = AfterStep(
            settings,
            run,
            "sft",
            optimizer,
            state,
            log,
            bar,
            stop,
            write_weights=partial(_write_weights, settings, run, model),
            evaluate=partial(_validate, settings, model, validation),
        )
        train(model, optimizer, loader, section, state, after_step)
    memory = memory_bytes(model, is_hidden if section.optimizer == "muon" else None)
    trainable = sum(p.size for p in model.parameters() if p.requires_grad)
    shutil.rmtree(folder / "adapter", ignore_errors=True)  # of an earlier run
    if section.adapter.method != "none":
        _write_weights(settings, run, model, folder / "adapter")
        model = _merged(model)
    ends = [tokenizer.special_tokens["<|im_end|>"], tokenizer.end_of_text_id]
    model.config = replace(model.config, eos_token_id=ends)  # a chat model ends its turn, not the document
    save_model(model, folder, run.tokenizer.parent)
    return {
        "steps": state.step,
        "tokens": state.tokens,
        "conversations": len(loader.examples),
        "tokens_per_second": state.tokens / max(state.seconds, 1e-9),
        "loss": log.rows()[-1]["loss"],
        "trainable_parameters": trainable,
        "training_bytes": memory["total"],
        **_exam(settings, run, model, tokenizer),
    }


def model_to_tune(settings: Settings, run: RunFolder, checkpoint: Path | None) -> Transformer:
    """The pretrained model or that of a checkpoint; with adapters, these on the frozen pretrained model."""
    adapter = settings.sft.adapter
    if adapter.method == "none":
        return load_model(checkpoint or run.checkpoint("pretrain"))
    model = load_model(run.checkpoint("pretrain"))
    if adapter.method == "qlora":
        quantize_model(model, QuantizationConfig(adapter.block_size, adapter.double_quantization))
    if checkpoint:
        load_adapter(model, checkpoint)
        return model
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


def open_conversations(
    settings: Settings, tokenizer: Tokenizer, positions: int
) -> tuple[PackedConversations, PackedConversations]:
    """Packed conversations to train on, and some to watch the loss with. Raises `UserError` naming the record that is wrong."""
    section = settings.sft
    length = min(section.sequence_length, positions)
    told = read_conversations(settings.data, section.source, section.seed, section.lessons)
    examples = [
        encode_conversation(tokenizer, messages, length, where)
        for where, messages in islice(told, section.conversations)
    ]
    held_out = examples[::VALIDATION_PART] if len(examples) > 1 else examples
    random.Random(section.seed).shuffle(held_out)  # the first of a curriculum are not like the rest
    kept = [example for i, example in enumerate(examples) if i % VALIDATION_PART] or examples
    pad_id = tokenizer.special_tokens.get("<|pad|>", tokenizer.end_of_text_id)
    options: dict[str, Any] = {"sequence_length": length, "pad_id": pad_id, "seed": section.seed}
    return (
        PackedConversations(kept, section.batch_size, shuffle=section.shuffle, **options),
        PackedConversations(held_out, section.batch_size, shuffle=False, **options),
    )


def _write_weights(settings: Settings, run: RunFolder, model: Transformer, folder: Path) -> None:
    """The weights that train: all, or the adapters."""
    if settings.sft.adapter.method == "none":
        save_model(model, folder, run.tokenizer.parent)
    else:
        save_adapter(model, folder, base_name=str(run.checkpoint("pretrain")))


def _merged(model: Transformer) -> Transformer:
    """A plain model that computes what the adapted one does."""
    plain = Transformer(model.config)
    plain.to(model.lm_head.weight.dtype)
    plain.load_state_dict(merged_state_dict(model))
    return plain


def _validate(settings: Settings, model: Transformer, validation: PackedConversations) -> dict[str, float]:
    """The loss on conversations that are not trained on."""
    section = settings.sft
    return {"validation_loss": evaluate_loss(model, validation, section.eval_batches, section.document_masks)}


def _exam(settings: Settings, run: RunFolder, model: Transformer, tokenizer: Tokenizer) -> dict[str, float]:
    """Share of held-out questions that get exactly the right reply, before and after; the replies are kept in answers.json."""
    answers = run.stage("sft") / "answers.json"
    answers.unlink(missing_ok=True)  # of an earlier run, on other data
    if settings.data.source != "story_world":
        return {}
    from shared_data.story_world.tasks import questions

    tasks = list(islice(questions(settings.sft.seed, "test"), settings.sft.test_questions))
    before = load_model(run.checkpoint("pretrain"))
    first = answer_questions(generate, before, tokenizer, tasks)
    last = answer_questions(generate, model, tokenizer, tasks)
    write_json(answers, {"before": first.records, "after": last.records})
    return {
        "qa_accuracy_before": first.accuracy,
        "qa_accuracy": last.accuracy,
        "unanswerable_accuracy": last.by_kind.get("unanswerable", 0.0),
    }
