"""`tokenizer.json`, the ecosystem's file of a tokenizer, by `tokenizers`.

Levels 2 and 3 read and write it by hand.

    python -c "from v1_quick.data_pipeline.tokenizer.tokenizer_file import new_config; print(list(new_config(['<|endoftext|>'])))"
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from shared_data.errors import UserError
from shared_data.files import read_json, write_json
from v1_quick.data_pipeline.tokenizer.chat_template import CHAT_TEMPLATE


def new_config(special_tokens: Sequence[str]) -> dict[str, Any]:
    """The content of `tokenizer_config.json`; the first special token ends a document (and, as in GPT-2, begins one)."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    if special_tokens:
        config |= {"bos_token": special_tokens[0], "eos_token": special_tokens[0]}
    if "<|pad|>" in special_tokens:
        config["pad_token"] = "<|pad|>"
    return config


def write_tokenizer(folder: Path | str, definition: tokenizers.Tokenizer, config: dict[str, Any]) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, each whole or not at all."""
    write_json(Path(folder) / "tokenizer.json", json.loads(definition.to_str()))
    write_json(Path(folder) / "tokenizer_config.json", config)


def read_tokenizer(path: Path | str) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """Tokenizer and configuration from a folder, a `tokenizer.json`, or a `vocab.json` with its `merges.txt`.

    Raises `UserError` where there is none, where it is damaged, or where it is no BPE.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        path = next(
            (folder / name for name in ("tokenizer.json", "vocab.json") if (folder / name).is_file()),
            folder / "tokenizer.json",
        )
    if not path.is_file():
        raise UserError(f"{path} is missing; run the stage that writes it, or correct the path")
    try:
        gpt2 = path.name in ("vocab.json", "merges.txt")
        backend = _read_gpt2_files(folder) if gpt2 else tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the bindings raise bare exceptions
        raise UserError(
            f"{path} is no valid tokenizer ({error}); it is damaged: copy or train it again"
        ) from error
    if not isinstance(backend.model, models.BPE):
        kind = type(backend.model).__name__
        raise UserError(
            f"{path} holds a {kind} tokenizer; use one of byte-level BPE (GPT-2, Llama-3, Qwen2 …)"
        )
    config_path = folder / "tokenizer_config.json"
    return backend, read_json(config_path) if config_path.is_file() else {}


def _read_gpt2_files(folder: Path) -> tokenizers.Tokenizer:
    """GPT-2's `vocab.json` and `merges.txt`; which of the two is missing, the library does not say."""
    for name in ("vocab.json", "merges.txt"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{name} is missing beside it")
    backend = tokenizers.Tokenizer(
        models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if backend.token_to_id("<|endoftext|>") is not None:
        backend.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    return backend
