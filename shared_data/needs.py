"""What stages need beyond the results before them: checked before the first one starts, not when the last one gets there.

A run of hours must not end with "there is no such file". Whatever can be known from settings and files alone is checked here:
the libraries, the device, the tokenizer's chat tokens, the records of every source, reward functions, sizes that must fit.

    check_needs(run, ["data", "tokenizer", "pretrain", "sft"])
"""

import difflib
import importlib
import importlib.util
import os
import re
import shutil
from collections.abc import Callable, Iterable
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any

from shared_data.alignment.rewards import open_reward
from shared_data.corpus.conversations import read_conversations
from shared_data.device import resolve_device
from shared_data.errors import UserError
from shared_data.model_files.folder import find_tensors, read_config
from shared_data.model_files.initialization import parameter_shapes
from shared_data.model_names import origin, starting_config
from shared_data.needs_records import STAGES_WITH_RECORDS, check_records, is_on_this_disk
from shared_data.peft.adapter_files import base_of_adapter
from shared_data.runs import RunFolder
from shared_data.stages import NO_SOURCE, STAGES
from shared_data.tokenizer.chat_template import CHAT_TEMPLATE, ChatTemplate, template_of
from shared_data.tokenizer.tokenizer_file import added_tokens_of, new_config, read_tokenizer
from shared_data.training.chat_data import check_turns

_LIBRARIES = {
    "v1": (
        "accelerate",
        "datasets",
        "datasketch",
        "ftfy",
        "lm_eval",
        "peft",
        "tokenizers",
        "torch",
        "transformers",
        "trl",
    ),
    "v2": ("torch",),
}
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
# The libraries of level 1 have no other value of these.
_ONLY_AT_LEVEL_1: dict[str, dict[str, Any]] = {
    "sft": {"adapter.bnb_4bit_blocksize": 64},
    "dpo": {"label_smoothing": 0.0},
    "ppo": {"reward": "reward_model"},
}


def check_needs(
    run: RunFolder, stages: Iterable[str], load_tokenizer: Callable[[Path], Any] | None = None
) -> None:
    """Raise a `UserError` for the first thing that these stages of a run will need and not find.

    load_tokenizer: the level's. With it, records of later stages are measured already if the tokenizer is known; the first stage
    will measure its own at once.
    """
    stages = list(stages)
    if not stages:
        return
    for library in _LIBRARIES.get(run.level, ()):
        if importlib.util.find_spec(library) is None:
            raise UserError(
                f"{run.level} needs {library}, which is not installed; run `uv sync --extra {run.level}`"
            )
    _check_device(run)
    path = _finished_tokenizer(run, "tokenizer" in stages)
    for stage in stages:
        if getattr(getattr(run.settings, stage), "source", None) == NO_SOURCE:
            raise UserError(f"{stage}.source is {NO_SOURCE!r}; name the data with --set {stage}.source=FILE")
        if STAGES[stage].resumable:
            _check_training(run, stage)
        if run.level == "v1":
            _check_level_1(run, stage)
        if stage in _OF_STAGE:
            _OF_STAGE[stage](run, stage)
        if stage in STAGES_WITH_RECORDS:
            elsewhere = origin(run, stage)
            own = elsewhere.tokenizer if elsewhere else path
            special_tokens = _check_chat_tokens(run, stage, own)
            tokenizer = None
            if own and load_tokenizer and stage != stages[0]:
                tokenizer = load_tokenizer(own)
            check_records(run, stage, special_tokens, tokenizer)


def _check_device(run: RunFolder) -> None:
    """The device exists; torch is imported only where it has to be asked."""
    device = run.settings.device
    if run.level == "v3" and device not in ("auto", "cpu"):
        raise UserError(
            f"device {device!r} is not for level 3, which is NumPy on the CPU; use --device cpu, or v1 or v2"
        )
    if not _DEVICE.fullmatch(device):
        raise UserError(f"device {device!r} is not one device; use auto, cpu, mps, cuda or cuda:N")
    if device not in ("auto", "cpu"):
        resolve_device(device)


def _check_level_1(run: RunFolder, stage: str) -> None:
    """What the libraries do not do is said before hours of training, not when their stage begins."""
    if stage == "reward" and not starting_config(run, stage).family.has_classifier:
        raise UserError(
            f"transformers has no reward model of {starting_config(run, stage).model_type}; stop before it, or use level 2 or 3"
        )
    for name, only in _ONLY_AT_LEVEL_1.get(stage, {}).items():
        value = attrgetter(f"{stage}.{name}")(run.settings)
        if value != only:
            raise UserError(
                f"level 1 has only {stage}.{name} = {only}, not {value}; leave it out, or use level 2"
            )


def _finished_tokenizer(run: RunFolder, is_made_again: bool) -> Path | None:
    """The tokenizer that the stages will have; None where the run has still to train it."""
    made, load = run.path / "tokenizer" / "tokenizer.json", run.settings.tokenizer.load
    if is_made_again:
        return Path(load) if load is not None else None
    return made if made.is_file() else None


def _check_chat_tokens(run: RunFolder, stage: str, path: Path | None) -> list[str]:
    """The special tokens of the tokenizer that the run has or will have; if its chat template ends turns as ours does, with that token."""
    where, tokens, config = (
        "tokenizer.special_tokens",
        list(run.settings.tokenizer.special_tokens),
        new_config([]),
    )
    if path is not None:
        definition, config = read_tokenizer(path)
        where, tokens = str(path), [token.content for token in added_tokens_of(definition) if token.special]
    template = template_of(config) or ChatTemplate(CHAT_TEMPLATE)
    if "<|im_end|>" in template.literals and "<|im_end|>" not in tokens:
        raise UserError(
            f"{where} has no special token <|im_end|>, with which the chat template of {stage} ends a turn; add it, or do the stages up "
            f"to pretrain one by one, as in `uv run {run.command('pretrain')}`"
        )
    return tokens


def _check_tokenizer(run: RunFolder, stage: str) -> None:
    section = run.settings.tokenizer
    if section.load is not None and not any(
        token.special for token in added_tokens_of(read_tokenizer(section.load)[0])
    ):
        raise UserError(f"{section.load} has no special token to end a document; add <|endoftext|> to it")
    if section.chat_source and is_on_this_disk("tokenizer.chat_source", section.chat_source):
        conversations = read_conversations(run.settings.data, section.chat_source)
        for conversation in islice(conversations, section.chat_conversations):
            check_turns(conversation.messages, conversation.where)


def _check_training(run: RunFolder, stage: str) -> None:
    section = getattr(run.settings, stage)
    elsewhere = origin(run, stage)
    if elsewhere is not None:  # all tensors of a language model, and no others
        folder = base_of_adapter(elsewhere.folder) or elsewhere.folder
        config = read_config(folder)
        find_tensors(folder, config, parameter_shapes(config))
    for name in ("bf16", "fp16"):
        if run.level == "v3" and getattr(section, name):
            raise UserError(
                f"NumPy multiplies matrices in 32 bits only; use --set {stage}.{name}=false, or level 1 or 2"
            )
    if run.level == "v2" and section.torch_compile and not shutil.which(os.environ.get("CXX", "c++")):
        raise UserError(
            f"{stage}.torch_compile needs a C++ compiler, and there is none; install one, or set it to false"
        )


def _check_pretrain(run: RunFolder, stage: str) -> None:
    section, config = run.settings.pretrain, starting_config(run, stage)
    if run.level == "v1" and not config.family.in_library:
        raise UserError(
            f"transformers has no {config.model_type}; use level 2 or 3, or another model.model_type"
        )
    if section.sequence_length > config.max_position_embeddings:
        raise UserError(
            f"pretrain.sequence_length {section.sequence_length} is above the model's {config.max_position_embeddings} positions; lower it"
        )


def _check_sft(run: RunFolder, stage: str) -> None:
    adapter = run.settings.sft.adapter
    if adapter.method != "none":
        names = parameter_shapes(starting_config(run, stage))
        modules = {name.rpartition(".")[0] for name in names} | {"lm_head"}
        targets = [] if adapter.target_modules == "all-linear" else adapter.target_modules
        for setting, wanted in (("target_modules", targets), ("modules_to_save", adapter.modules_to_save)):
            for name in wanted:
                if not any(module == name or module.endswith(f".{name}") for module in modules):
                    raise UserError(
                        f"sft.adapter.{setting}: no module is called {name!r}; correct it, for example to {_closest(name, modules)}"
                    )


def _closest(name: str, modules: set[str]) -> str:
    """The name most like this one, as a target is written."""
    names = sorted(module.rpartition(".")[2] for module in modules)
    return difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]


def _check_policy(run: RunFolder, stage: str) -> None:
    section, positions = getattr(run.settings, stage), starting_config(run, stage).max_position_embeddings
    length = section.max_completion_length
    if length >= positions:
        raise UserError(
            f"{stage}.max_completion_length {length} leaves no room for a prompt in the model's {positions} positions "
            "(model.max_position_embeddings); lower the first or raise the second"
        )
    if stage != "dpo" and section.reward != "reward_model":
        open_reward(section.reward)


def _check_evaluate(run: RunFolder, stage: str) -> None:
    section, data = run.settings.evaluate, run.settings.data
    if section.split == "test" and data.test_fraction == 0 and data.source != "story_world":
        raise UserError(
            "evaluate.split is test, but data.test_fraction = 0 holds no text out for it; raise the second, or use --set "
            "evaluate.split=validation"
        )
    context = min(run.settings.model.max_position_embeddings, run.settings.pretrain.sequence_length)
    if section.stride is not None and section.stride > context:
        raise UserError(
            f"evaluate.stride {section.stride} would skip text between windows of {context} tokens; choose one from 1 to {context}"
        )


_OF_STAGE: dict[str, Callable[[RunFolder, str], None]] = {
    "tokenizer": _check_tokenizer,
    "pretrain": _check_pretrain,
    "sft": _check_sft,
    "dpo": _check_policy,
    "ppo": _check_policy,
    "grpo": _check_policy,
    "evaluate": _check_evaluate,
}
