"""The tokenizer in a GGUF file as the content of `tokenizer.json` and `tokenizer_config.json`, and back.

    tokenizer.ggml.model             gpt2: byte-level BPE    llama: SentencePiece, merges by score
    tokenizer.ggml.pre               how text is cut and normalized before BPE, by a name that llama.cpp knows
    tokenizer.ggml.tokens, merges    the vocabulary in the order of ids; "Ġt he"
    tokenizer.ggml.token_type        1 normal, 2 unknown, 3 control (special), 4 user-defined (added), 5 unused, 6 a byte
    tokenizer.ggml.*_token_id        bos, eos, unknown, padding; add_bos_token, add_eos_token: what is put around a text
    tokenizer.chat_template          in Jinja

Names of `pre`: gguf_pre_tokenizers.py; SentencePiece: gguf_sentencepiece.py.

    uv run python -c "from shared_data.model_files.gguf import *; from shared_data.model_files.gguf_tokenizer import *; print(tokenizer_from_gguf(read_gguf('model.gguf'))[1])"
"""

from collections.abc import Sequence
from typing import Any

from shared_data.errors import UserError
from shared_data.model_files.gguf import GgufFile
from shared_data.model_files.gguf_pre_tokenizers import PRE_TOKENIZERS, pre_tokenizing_of, with_pre_tokenizing
from shared_data.model_files.gguf_sentencepiece import sentencepiece_definition
from shared_data.tokenizer.added_tokens import AddedToken
from shared_data.tokenizer.tokenizer_file import (
    Definition,
    added_tokens_of,
    merges_of,
    new_definition,
    surrounding_ids,
)

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def tokenizer_from_gguf(file: GgufFile) -> tuple[Definition, Definition]:
    """The content of `tokenizer.json` and of `tokenizer_config.json`. Raises `UserError` for what is not supported or damaged."""
    entries = {key.removeprefix("tokenizer.ggml."): value for key, value in file.metadata.items()}
    kind = entries.get("model")
    if kind not in ("gpt2", "llama"):
        raise UserError(
            f"{file.path} has a tokenizer of the kind {kind!r:.60}; supported are gpt2 (byte-level BPE) and llama (SentencePiece)"
        )
    tokens, types = _vocabulary(file, entries)
    added = [
        AddedToken(id, token, special=type != USER_DEFINED)
        for id, (token, type) in enumerate(zip(tokens, types, strict=True))
        if type in (CONTROL, USER_DEFINED) or (type == UNKNOWN and kind == "llama")
    ]
    # What fills the vocabulary up to the size of the model is no token.
    vocab = {
        token: id
        for id, (token, type) in enumerate(zip(tokens, types, strict=True))
        if type != UNUSED or not token.startswith("[PAD")
    }
    ids = {name: _token_id(file, entries, f"{theirs}_token_id", tokens) for name, theirs in _SPECIAL.items()}
    if kind == "llama":
        merges = _listed_merges(file, entries)
        definition = sentencepiece_definition(file, entries, vocab, merges, ids["unk_token"])
    else:
        definition = _byte_level_definition(file, entries, vocab)
    # Files that are silent about it: llama.cpp puts <s> and <|begin_of_text|> before a text.
    silent = kind == "llama" or bool(definition["model"]["ignore_merges"])
    names = {name: tokens[id] for name, id in ids.items() if id is not None}
    before = [names.get("bos_token", "")] if entries.get("add_bos_token", silent) else []
    after = [names.get("eos_token", "")] if entries.get("add_eos_token", False) else []
    if "" in (*before, *after):
        raise UserError(f"{file.path} puts a token around each text, but names none; copy it again")
    definition["added_tokens"] = [token.to_json() for token in added]
    definition["post_processor"] = _template(before, after, vocab)
    config: Definition = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": bool(before),
        "add_eos_token": bool(after),
        **names,
    }
    if isinstance(template := file.metadata.get("tokenizer.chat_template"), str):
        config["chat_template"] = template
    return definition, config


def _vocabulary(file: GgufFile, entries: dict[str, Any]) -> tuple[list[str], list[int]]:
    """The token of each id and its type."""
    tokens = entries.get("tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise UserError(f"{file.path} has no list of tokens (tokenizer.ggml.tokens); copy it again")
    if len(set(tokens)) != len(tokens):
        raise UserError(f"{file.path} has two tokens that read the same; copy it again")
    types = entries.get("token_type", [NORMAL] * len(tokens))
    if not isinstance(types, list) or len(types) != len(tokens):
        raise UserError(f"{file.path} has {len(tokens)} tokens, but not a type for each; copy it again")
    return tokens, types


def _token_id(file: GgufFile, entries: dict[str, Any], name: str, tokens: Sequence[str]) -> int | None:
    id = entries.get(name)
    if id is not None and (type(id) is not int or not 0 <= id < len(tokens)):
        raise UserError(f"{file.path} has {name} {id!r:.60}, which is no id of its tokens; copy it again")
    return id


def _listed_merges(file: GgufFile, entries: dict[str, Any]) -> list[tuple[str, str]] | None:
    """The merges as pairs of tokens; None where the file lists none."""
    merges = entries.get("merges")
    if merges is None:
        return None
    if not isinstance(merges, list) or not all(isinstance(m, str) and len(m.split(" ")) == 2 for m in merges):
        raise UserError(
            f"{file.path} has no merges of two tokens each (tokenizer.ggml.merges); copy it again"
        )
    return [(left, right) for left, right in (merge.split(" ") for merge in merges)]


def _byte_level_definition(file: GgufFile, entries: dict[str, Any], vocab: dict[str, int]) -> Definition:
    """`tokenizer.json` of byte-level BPE."""
    pre, merges = entries.get("pre"), _listed_merges(file, entries)
    if not isinstance(pre, str) or pre not in PRE_TOKENIZERS:
        raise UserError(
            f"{file.path} cuts text in the way {pre!r:.60} (tokenizer.ggml.pre), which is not supported; supported are "
            f"{', '.join(PRE_TOKENIZERS)}"
        )
    if merges is None:
        raise UserError(f"{file.path} has no merges (tokenizer.ggml.merges); copy it again")
    return with_pre_tokenizing(new_definition(vocab, merges, "gpt4", []), PRE_TOKENIZERS[pre])


def _template(before: list[str], after: list[str], vocab: dict[str, int]) -> Definition | None:
    """The post-processor that puts tokens around a text."""
    if not before and not after:
        return None

    def parts(sequence: str, type_id: int) -> list[Definition]:
        names = [*(("SpecialToken", token) for token in before), ("Sequence", sequence)]
        names += [("SpecialToken", token) for token in after]
        return [{kind: {"id": name, "type_id": type_id}} for kind, name in names]

    special = {token: {"id": token, "ids": [vocab[token]], "tokens": [token]} for token in (*before, *after)}
    return {
        "type": "TemplateProcessing",
        "single": parts("A", 0),
        "pair": parts("A", 0) + parts("B", 1),
        "special_tokens": special,
    }


def tokenizer_to_gguf(definition: Definition, config: Definition, vocab_size: int) -> dict[str, Any]:
    """The entries of a byte-level tokenizer for a model of that many embeddings. Raises `UserError` where llama.cpp has no name for it."""
    pre = next((name for name, kind in PRE_TOKENIZERS.items() if kind == pre_tokenizing_of(definition)), None)
    if pre is None:
        raise UserError(
            "the tokenizer cuts text in a way that llama.cpp has no name for; export a model with a byte-level tokenizer of the kinds "
            f"{', '.join(PRE_TOKENIZERS)}"
        )
    added = added_tokens_of(definition)
    by_id = {id: token for token, id in definition["model"]["vocab"].items()}
    by_id |= {token.id: token.content for token in added}
    kinds = {token.id: CONTROL if token.special else USER_DEFINED for token in added}
    size = max(vocab_size, max(by_id) + 1)
    ids = {token: id for id, token in by_id.items()}
    before, after = surrounding_ids(definition)
    entries: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [by_id.get(id, f"[PAD{id}]") for id in range(size)],
        "tokenizer.ggml.token_type": [kinds.get(id, NORMAL) if id in by_id else UNUSED for id in range(size)],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges_of(definition)],
    }
    for name, theirs in _SPECIAL.items():
        token = config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if token in ids:
            entries[f"tokenizer.ggml.{theirs}_token_id"] = ids[token]
    for side, name in ((before, "bos"), (after, "eos")):
        if side and side != [entries.get(f"tokenizer.ggml.{name}_token_id")]:
            raise UserError(
                f"the tokenizer puts the ids {side} around each text, and a GGUF file can only say {name}; take them out of its "
                "post_processor"
            )
        entries[f"tokenizer.ggml.add_{name}_token"] = bool(side)
    if isinstance(config.get("chat_template"), str):
        entries["tokenizer.chat_template"] = config["chat_template"]
    return {key: value for key, value in entries.items() if value != []}
