"""`tokenizer.json`, the ecosystem's file of a tokenizer, read and written by hand.

One JSON object holds everything between text and ids: `normalizer` and `pre_tokenizer` (before BPE), `model` (the vocabulary, the
merges), `added_tokens`, `post_processor` (tokens put around a text) and `decoder`. Beside it, `tokenizer_config.json` names
the tokens that end and pad a text, and the chat template. Older tokenizers come as GPT-2's two files, `vocab.json`
and `merges.txt`. Reading checks what we rely on, and every refusal names the file.

Level 1: `AutoTokenizer.from_pretrained` and `save_pretrained`, which keeps the chat template in `chat_template.jinja`.

    uv run python -c "from shared_data.tokenizer.tokenizer_file import *; print(list(new_definition({'a': 0}, [], 'gpt4', [])))"
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared_data.errors import UserError
from shared_data.files import read_json, write_json
from shared_data.model_files.gguf import is_gguf, read_gguf
from shared_data.tokenizer.added_tokens import AddedToken
from shared_data.tokenizer.chat_template import CHAT_TEMPLATE
from shared_data.tokenizer.split_patterns import PATTERNS

Definition = dict[str, Any]


def new_definition(
    vocab: dict[str, int], merges: list[tuple[str, str]], pattern: str, special_tokens: Sequence[str]
) -> Definition:
    """The content of `tokenizer.json` for a tokenizer that we trained."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            AddedToken(vocab[token], token).to_json() for token in dict.fromkeys(special_tokens)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": PATTERNS[pattern]},
                    "behavior": "Isolated",
                    "invert": False,
                },
                _byte_level(add_prefix_space=False, use_regex=False),
            ],
        },
        "post_processor": None,
        "decoder": _byte_level(),
        "model": _bpe_model(vocab, merges),
    }


def _byte_level(add_prefix_space: bool = True, use_regex: bool = True) -> Definition:
    """A ByteLevel step; as a decoder it has the same fields, though it uses none of them."""
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _bpe_model(vocab: dict[str, int], merges: Sequence[Sequence[str]]) -> Definition:
    """The model object of byte-level BPE without options."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": [list(pair) for pair in merges],
    }


def new_config(special_tokens: Sequence[str]) -> Definition:
    """The content of `tokenizer_config.json`; the first special token ends a document (and, as in GPT-2, begins one)."""
    config: Definition = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    if special_tokens:
        config |= {"bos_token": special_tokens[0], "eos_token": special_tokens[0]}
    if "<|pad|>" in special_tokens:
        config["pad_token"] = "<|pad|>"
    return config


def write_tokenizer(folder: Path | str, definition: Definition, config: Definition) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, each whole or not at all."""
    write_json(Path(folder) / "tokenizer.json", definition)
    write_json(Path(folder) / "tokenizer_config.json", config)


def tokenizer_beside(folder: Path, otherwise: Path) -> Path:
    """The folder of a model, or its GGUF file, where a tokenizer stands in it; else the other path."""
    if is_gguf(folder):
        return folder if "tokenizer.ggml.tokens" in read_gguf(folder).metadata else otherwise
    own = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    return folder if own else otherwise


def read_tokenizer(path: Path | str) -> tuple[Definition, Definition]:
    """Definition and configuration from a folder, a `tokenizer.json`, a GGUF file, or a `vocab.json` with its `merges.txt`.

    Raises `UserError` where there is none, where it is damaged, or where it is no byte-level BPE.
    """
    path = Path(path)
    if is_gguf(path):
        from shared_data.model_files.gguf_tokenizer import tokenizer_from_gguf  # which builds on this module

        definition, config = tokenizer_from_gguf(read_gguf(path))
        _check(definition, path)
        return definition, config
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        path = next(
            (folder / name for name in ("tokenizer.json", "vocab.json") if (folder / name).is_file()),
            folder / "tokenizer.json",
        )
    if path.name in ("vocab.json", "merges.txt"):
        definition = _read_gpt2_files(folder / "vocab.json", folder / "merges.txt")
    else:
        definition = read_json(path)
    _check(definition, path)
    config_path = folder / "tokenizer_config.json"
    config = read_json(config_path) if config_path.is_file() else {}
    if not isinstance(config, dict):
        raise UserError(f"{config_path} is not a JSON object; it is damaged: copy it again")
    template_path = folder / "chat_template.jinja"  # where newer versions of transformers keep it
    if template_path.is_file():
        config["chat_template"] = template_path.read_text(encoding="utf-8", errors="replace")
    return definition, config


def _read_gpt2_files(vocab_path: Path, merges_path: Path) -> Definition:
    """GPT-2's files as a definition: a dictionary of tokens, and a text with two tokens a line after a version line."""
    vocab = read_json(vocab_path)
    if not isinstance(vocab, dict):
        raise UserError(f"{vocab_path} is not a JSON object of tokens and ids; it is damaged: copy it again")
    try:
        lines = merges_path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{merges_path} cannot be read ({error}); put the merges.txt that belongs to {vocab_path.name} beside it"
        ) from error
    merges = [
        line.rstrip("\r").split(" ") for line in lines if line.strip() and not line.startswith("#version")
    ]
    end = "<|endoftext|>"
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [AddedToken(vocab[end], end).to_json()] if end in vocab else [],
        "normalizer": None,
        "pre_tokenizer": _byte_level(add_prefix_space=False),
        "post_processor": None,
        "decoder": _byte_level(),
        "model": _bpe_model(vocab, merges),
    }


def _check(definition: Any, path: Path) -> None:
    """Refuse, with the name of the file, what is damaged or no byte-level BPE."""
    damaged = f"{path} is no valid tokenizer.json (%s); it is damaged: copy or train it again"
    if not isinstance(definition, dict) or not isinstance(definition.get("model"), dict):
        raise UserError(damaged % "it has no model")
    model = definition["model"]
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind != "BPE":
        raise UserError(
            f"{path} holds a {kind} tokenizer; use one of byte-level BPE (GPT-2, Llama-3, Qwen2 …)"
        )
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(option):
            raise UserError(
                f"{path} uses BPE with {option}={model[option]!r}, which is not supported; use one of byte-level BPE"
                " without it (GPT-2, Llama-3, Qwen2 …)"
            )
    vocab, merges = model.get("vocab"), model.get("merges")
    if (
        not isinstance(vocab, dict)
        or not vocab
        or not all(type(id) is int and id >= 0 for id in vocab.values())
    ):
        raise UserError(damaged % "its vocabulary is not a dictionary of tokens and ids")
    if len(set(vocab.values())) != len(vocab):
        raise UserError(damaged % "two tokens of its vocabulary have the same id")
    if not isinstance(merges, list):
        raise UserError(damaged % "it has no list of merges")
    for number, merge in enumerate(merges, 1):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(token, str) for token in pair):
            raise UserError(damaged % f"merge {number} is {merge!r}, not two tokens")
    added = definition.get("added_tokens") or []
    if not isinstance(added, list) or not all(
        isinstance(token, dict) and isinstance(token.get("content"), str) and type(token.get("id")) is int
        for token in added
    ):
        raise UserError(damaged % "an added token lacks its content or its id")


def merges_of(definition: Definition) -> list[tuple[str, str]]:
    """The merges as pairs of tokens; files have them as pairs or, before `tokenizers` 0.20, as "a b"."""
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in definition["model"]["merges"])
    return [(left, right) for left, right in pairs]


def added_tokens_of(definition: Definition) -> list[AddedToken]:
    """The added tokens of a file; the fields that it leaves out are false."""
    fields = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return [
        AddedToken(token["id"], token["content"], **{field: bool(token.get(field)) for field in fields})
        for token in definition.get("added_tokens") or []
    ]


def surrounding_ids(definition: Definition) -> tuple[list[int], list[int]]:
    """The ids that the post-processor puts before and after a text (Llama-3 begins each with <|begin_of_text|>)."""
    post_processor = definition.get("post_processor") or {}
    parts = post_processor.get("processors", [post_processor] if post_processor else [])
    before: list[int] = []
    after: list[int] = []
    for part in parts:
        if part.get("type") == "ByteLevel":
            continue  # only trims the offsets, which ids do not have
        if part.get("type") != "TemplateProcessing":
            raise UserError(
                f"its post-processor {part.get('type')!r} is not supported; TemplateProcessing and ByteLevel are"
            )
        side = before
        for piece in part["single"]:
            if "Sequence" in piece:
                side = after
            else:
                side += part["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
    return before, after
