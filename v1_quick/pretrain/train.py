"""The stage `pretrain`: token files in, a language model out; resumable at any moment.

This file decides what is trained and where everything goes; how a step works is in components/training_loop.py. The
results are a Hugging Face folder (`config.json`, `model.safetensors`, the tokenizer's files), the metrics log, and numbers
for metrics.json, among them the bits per byte on held-out text beside the lowest that any model can reach.

All levels have the same stage; level 1 hands the training to `transformers.Trainer`.

    uv run v1 pretrain --config tiny
"""

from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedConfig

from shared_data.errors import UserError
from shared_data.files import read_json
from shared_data.metrics_log import MetricsLog
from shared_data.progress import progress
from shared_data.runs import RunFolder
from shared_data.settings import Settings
from v1_quick.data_pipeline.tokenizer.tokenizer import Tokenizer
from v1_quick.device import resolve_device
from v1_quick.evaluation.metrics.perplexity import bits_per_byte, perplexity, score_tokens
from v1_quick.inference.generate import generate
from v1_quick.models.checkpoint import load_model, save_model
from v1_quick.models.config import ModelConfig
from v1_quick.models.transformer import Transformer
from v1_quick.pretrain.components.after_step import AfterStep
from v1_quick.pretrain.components.muon import choose_optimizer
from v1_quick.pretrain.components.training_loop import evaluate_loss, train
from v1_quick.pretrain.components.training_state import (
    StopRequest,
    TrainingState,
    clear_training_states,
    find_checkpoint,
    load_training_state,
)
from v1_quick.pretrain.data_loader import PackedDataLoader, open_tokens, read_token_facts


def pretrain(settings: Settings, run: RunFolder) -> dict[str, float | int | None]:
    """Train the model of the settings on the token files of the run; returns the numbers of the stage.

    Raises `UserError` for a corpus below one sequence, a checkpoint or tokenizer that does not fit, a diverged loss.
    """
    tokenizer = Tokenizer.load(run.tokenizer)
    loader = open_loader(settings, run, "train", tokenizer)
    validation = open_loader(settings, run, "validation", tokenizer)
    folder = run.stage("pretrain")
    checkpoint = find_checkpoint(folder / "state", run.fingerprint("pretrain"), settings.pretrain.resume)
    model = load_model(checkpoint) if checkpoint else build_model(settings, run, tokenizer)
    model.to(resolve_device(settings.device))
    optimizer = choose_optimizer(model, settings.pretrain)
    state = TrainingState()
    if checkpoint:
        state = load_training_state(checkpoint, optimizer)
        loader.load_state_dict(state.loader)
    else:
        clear_training_states(folder / "state")
    log = MetricsLog(folder / "metrics_log.jsonl")
    log.truncate_after(state.step)  # what a killed run logged after its last checkpoint will be logged again

    with (
        progress(settings.pretrain.steps, "pretrain", done=state.step) as bar,
        StopRequest() as stop,
    ):
        after_step = AfterStep(
            settings,
            run,
            "pretrain",
            optimizer,
            state,
            log,
            bar,
            stop,
            write_weights=partial(save_model, model, tokenizer_folder=run.tokenizer.parent),
            evaluate=partial(_validate, settings, model, validation),
            sample=partial(_sample, settings, model, tokenizer),
            sample_every=settings.pretrain.sample_every,
        )
        train(model, optimizer, loader, settings.pretrain, state, after_step)
    save_model(model, folder, run.tokenizer.parent)
    return {
        "steps": state.step,
        "tokens": state.tokens,
        "epochs": state.tokens / len(loader.tokens),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens_per_second": state.tokens / max(state.seconds, 1e-9),
        "loss": log.rows()[-1]["loss"],
        **held_out_numbers(settings, run, model, tokenizer),
    }


def open_loader(settings: Settings, run: RunFolder, split: str, tokenizer: Tokenizer) -> PackedDataLoader:
    """Batches of a split; the training split is shuffled."""
    path, facts = run.tokens(split), read_token_facts(run.tokens(split))
    if facts["vocab_size"] != tokenizer.vocab_size:
        raise UserError(
            f"{path} was made with a tokenizer of {facts['vocab_size']} tokens, {run.tokenizer} has "
            f"{tokenizer.vocab_size}; run the stage `tokenizer` again with --force"
        )
    section = settings.pretrain
    return PackedDataLoader(
        path,
        section.batch_size,
        section.sequence_length,
        tokenizer.end_of_text_id,
        section.seed,
        shuffle=split == "train",
    )


def build_model(settings: Settings, run: RunFolder, tokenizer: Tokenizer) -> Transformer:
    """A fresh model of the settings, or that of `init_from`.

    Raises `UserError` where `init_from` has another shape than `[model]` or another vocabulary than the tokenizer.
    """
    config = ModelConfig.from_settings(settings.model, tokenizer.vocab_size, tokenizer.end_of_text_id)
    if settings.pretrain.init_from is None:
        return Transformer(config).initialize(settings.pretrain.seed)
    source = load_model(Path(settings.pretrain.init_from))
    _check_vocabulary(Path(settings.pretrain.init_from), source.config, run, tokenizer)
    _check_shape(settings.pretrain.init_from, source.config, config)
    with_dropout = copy(source.config)
    for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop", "attention_dropout"):
        if hasattr(config, name):
            setattr(with_dropout, name, getattr(config, name))
    model = Transformer(with_dropout)
    model.load_state_dict(source.state_dict())
    return model


def held_out_numbers(
    settings: Settings, run: RunFolder, model: Transformer, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Perplexity and bits per byte on the validation split, and the fewest bits per byte possible (or None)."""
    facts = read_token_facts(run.tokens("validation"))
    context = settings.pretrain.sequence_length
    score = score_tokens(
        model,
        open_tokens(run.tokens("validation")).astype(np.int64),
        context_length=context,
        stride=min(settings.evaluate.stride or context // 2, context),
        batch_size=settings.evaluate.batch_size,
        end_of_text_id=tokenizer.end_of_text_id,
    )
    known = facts.get("log2_probability")
    return {
        "perplexity": perplexity(score),
        "bits_per_byte": bits_per_byte(score, facts["bytes"]),
        "floor_bits_per_byte": None if known is None else -known / facts["bytes"],
    }


def _validate(settings: Settings, model: Transformer, validation: PackedDataLoader) -> dict[str, float]:
    """The loss on held-out text, which tells learning from learning by heart."""
    section = settings.pretrain
    return {"validation_loss": evaluate_loss(model, validation, section.eval_batches, section.document_masks)}


def _sample(settings: Settings, model: Transformer, tokenizer: Tokenizer, seed: int) -> str:
    """A continuation of the prompt of the settings; the same step of the same run gives the same text."""
    prompt = settings.pretrain.sample_prompt
    ids = generate(
        model,
        [[tokenizer.end_of_text_id, *tokenizer.encode(prompt)]],  # as a document begins in training
        max_new_tokens=settings.pretrain.sample_tokens,
        temperature=0.8,
        seed=seed,
        eos_token_id=tokenizer.end_of_text_id,
    )
    model.train()
    return prompt + tokenizer.decode(ids[0], skip_special_tokens=True)


def _check_vocabulary(source: Path, config: PreTrainedConfig, run: RunFolder, tokenizer: Tokenizer) -> None:
    """The tokens must mean what they meant to the checkpoint: same entries where it has a tokenizer, same number else."""
    theirs = source / "tokenizer.json"
    if theirs.is_file():
        same = read_json(theirs)["model"]["vocab"] == read_json(run.tokenizer)["model"]["vocab"]
        same = same and config.vocab_size >= tokenizer.vocab_size
    else:
        same = config.vocab_size == tokenizer.vocab_size
    if not same:
        raise UserError(
            f"{source} was trained with another tokenizer than {run.tokenizer}; start from that tokenizer with "
            f"--set tokenizer.load={source}, or leave pretrain.init_from out"
        )


def _check_shape(source: str, theirs: PreTrainedConfig, ours: PreTrainedConfig) -> None:
    """Name the first size in which the checkpoint and `[model]` differ."""
    names = ["model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    names += ["num_key_value_heads", "head_dim", "max_position_embeddings", "tie_word_embeddings"]
    for name in names:
        a, b = getattr(theirs, name, None), getattr(ours, name, None)  # GPT2Config has no key-value heads
        if a != b:
            raise UserError(
                f"{source} has {name} {a}, the settings have {b}; use --set model.{name}={str(a).lower()}"
            )
