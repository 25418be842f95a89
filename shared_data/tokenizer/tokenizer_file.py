"""`tokenizer.json`, the ecosystem's file of a tokenizer, read and written by hand.

One JSON object holds everything between text and ids: `normalizer` and `pre_tokenizer` (before BPE), `model` (the vocabulary, the
merges), `added_tokens`, `post_processor` (tokens put around a text) and `decoder`. Other files of its folder add tokens and the chat template
(`tokenizer_config.py`) or say what stands in no file (`tokenizer_classes.py`); `vocab.json` and `merges.txt` are GPT-2's older form (`vocab_and_merges.py`).
What we rely on is checked (`tokenizer_check.py`).

Level 1: `AutoTokenizer.from_pretrained` and `save_pretrained`, which keeps the chat template in `chat_template.jinja`.

    uv run python -c "from shared_data.tokenizer.tokenizer_file import *; print(list(new_definition({'a': 0}, [], 'gpt4', [])))"
"""

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from shared_data.errors import UserError
from shared_data.files import atomic_write, read_json, write_json
from shared_data.model_files.gguf import is_gguf, read_gguf
from shared_data.tokenizer.added_tokens import AddedToken
from shared_data.tokenizer.chat_template import CHAT_TEMPLATE
from shared_data.tokenizer.split_patterns import PATTERNS
from shared_data.tokenizer.tokenizer_check import (
    Template,
    Vocabulary,
    check_bpe,
    check_byte_tokens,
    check_definition,
    check_vocabulary,
)
from shared_data.tokenizer.tokenizer_classes import (
    byte_level,
    class_of_folder,
    split_then_bytes,
    steps_of_class,
)
from shared_data.tokenizer.tokenizer_config import added_tokens, read_config
from shared_data.tokenizer.vocab_and_merges import (
    begin_and_end,
    bpe_model,
    class_of_vocab,
    read_vocab_and_merges,
)

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
        "pre_tokenizer": split_then_bytes(PATTERNS[pattern]),
        "post_processor": None,
        "decoder": byte_level(),
        "model": bpe_model(vocab, merges),
    }


def new_config(names: Sequence[str]) -> Definition:
    """The content of `tokenizer_config.json`; the first special token ends a document (and, as in GPT-2, begins one)."""
    config: Definition = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    if names:
        config |= {"bos_token": names[0], "eos_token": names[0]}
    if "<|pad|>" in names:
        config["pad_token"] = "<|pad|>"
    return config


def write_tokenizer(folder: Path | str, definition: Definition, config: Definition) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`, each whole or not at all."""
    templates = config.get("chat_template")
    if isinstance(templates, dict):  # several, by name: a list in this file
        named = [{"name": name, "template": text} for name, text in templates.items()]
        config = config | {"chat_template": named}
    write_json(Path(folder) / "tokenizer.json", definition)
    write_json(Path(folder) / "tokenizer_config.json", config)


def save_template(folder: Path, config: Definition) -> None:
    """Write chat_template.jinja, where no file of the folder has a template yet."""
    if "chat_template" in config and "chat_template" not in read_tokenizer(folder)[1]:
        with atomic_write(folder / "chat_template.jinja", "w") as file:
            file.write(config["chat_template"])


def tokenizer_beside(folder: Path, otherwise: Path) -> Path:
    """The folder of a model, or its GGUF file, where a tokenizer stands in it; else the other path."""
    if is_gguf(folder):
        return folder if "tokenizer.ggml.tokens" in read_gguf(folder).metadata else otherwise
    own = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    return folder if own else otherwise


def read_tokenizer(path: Path | str) -> tuple[Definition, Definition]:
    """Definition and configuration from a folder, a `tokenizer.json`, a GGUF file, or a `vocab.json` with its `merges.txt`.

    The definition is that of `tokenizer.json` with all that the other files of its folder add or change. Raises `UserError` where
    there is none, where a file is damaged, or where it is no BPE that we apply exactly.
    """
    path = Path(path)
    if is_gguf(path):
        from shared_data.model_files.gguf_tokenizer import tokenizer_from_gguf  # which builds on this module

        definition, config = tokenizer_from_gguf(read_gguf(path))
        check_definition(definition, path)
        check_byte_tokens(definition["model"], path)
        return definition, config
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        path = next(
            (folder / name for name in ("tokenizer.json", "vocab.json") if (folder / name).is_file()),
            folder / "tokenizer.json",
        )
    config = read_config(folder)
    model_config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if path.name in ("vocab.json", "merges.txt"):
        path = folder / "vocab.json"
        definition = read_vocab_and_merges(path, folder / "merges.txt")
        name: str | None = class_of_vocab(path, config, model_config)
    else:
        definition = read_json(path)
        check_definition(definition, path)
        name = class_of_folder(config, model_config, '"ByteLevel"' in json.dumps(_steps(definition)))
    in_file = added_tokens_of(definition)
    if name is not None:
        steps = steps_of_class(name, config)
        definition = definition | steps | {"model": definition["model"] | steps["model"]}
    check_byte_tokens(definition["model"], path)
    more = _read_added_tokens(folder / "added_tokens.json")
    added = added_tokens(definition["model"]["vocab"], in_file, config, more, name, folder)
    definition = definition | {"added_tokens": [token.to_json() for token in added]}
    if path.name == "vocab.json":
        definition["post_processor"] = begin_and_end(config, name, added, folder)
    # Named in any case, so that what is saved stays the same tokenizer beside any config.json.
    return definition, config | {"tokenizer_class": name or "PreTrainedTokenizerFast"}


def check_files(folder: Path) -> Definition:
    """The content of a folder's tokenizer_config.json, once all files of its tokenizer have been checked, as far as any library reads them.

    For level 1, whose library names neither file nor entry, and takes two tokens of one id.
    """
    config = read_config(folder)
    _read_added_tokens(folder / "added_tokens.json")
    path, vocab = folder / "tokenizer.json", folder / "vocab.json"
    if path.is_file():
        definition = read_json(path)
        model = definition.get("model")
        if not isinstance(model, dict) or model.get("type", "BPE") == "BPE":
            check_bpe(definition, path)
    elif vocab.is_file():
        check_vocabulary(read_json(vocab), vocab)
    return config


def _steps(definition: Definition) -> Definition:
    """The steps of a definition before and after its model."""
    return {
        name: definition.get(name) for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder")
    }


def _read_added_tokens(path: Path) -> dict[str, int]:
    """The tokens and ids of an added_tokens.json; none where there is no such file."""
    added: dict[str, int] = read_json(path) if path.is_file() else {}
    Vocabulary.read({"tokens": added}, path)
    return added


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
    templates = [part for part in parts if part.get("type") == "TemplateProcessing"]
    for part in parts:
        if part.get("type") not in (
            "TemplateProcessing",
            "ByteLevel",
        ):  # this one only trims the offsets, which ids do not have
            raise UserError(
                f"its post-processor {part.get('type')!r} is not supported; TemplateProcessing and ByteLevel are"
            )
    if not templates:
        return [], []
    template = Template.read(templates[0], remedy="correct its post-processor")
    texts = [place for place, piece in enumerate(template.single) if piece.SpecialToken is None]
    if len(templates) > 1 or len(texts) != 1:
        raise UserError("its post-processor does not have one text and tokens around it; use such a template")
    ids = [
        _ids_of(piece.SpecialToken.id, template) if piece.SpecialToken else [] for piece in template.single
    ]
    around = list(chain(*ids[: texts[0]])), list(chain(*ids[texts[0] :]))
    known = {*definition["model"]["vocab"].values(), *(token.id for token in added_tokens_of(definition))}
    if unknown := set(chain(*around)) - known:
        raise UserError(f"its post-processor adds the id {min(unknown)}, which no token has; correct it")
    return around


def _ids_of(name: str, template: Template) -> list[int]:
    if name not in template.special_tokens:
        raise UserError(f"its post-processor adds {name!r:.40}, which its special_tokens lack; correct it")
    return template.special_tokens[name].ids
