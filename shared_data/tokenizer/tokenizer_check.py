"""What is checked when a tokenizer is read, before anything is built from it: every refusal names the file and the remedy.

uv run python -c "from shared_data.tokenizer.tokenizer_check import *; check_vocabulary({'a': 0, 'b': 1}, 'vocab.json')"
"""

from pathlib import Path
from typing import Any

from shared_data.errors import UserError
from shared_data.tokenizer.word_encoder import byte_token

# The largest vocabularies have some 300,000 tokens; arrays of this length still fit into memory.
LARGEST_ID = 2**24 - 1


def check_vocabulary(vocab: Any, path: Path | str) -> None:
    """Refuse a vocabulary that is no dictionary of tokens and different ids."""
    damaged = f"{path} is no valid vocabulary (%s); it is damaged: copy or train it again"
    if not isinstance(vocab, dict) or not vocab:
        raise UserError(damaged % "its vocabulary is not a dictionary of tokens and ids")
    for token, id in vocab.items():
        if not is_id(id):
            raise UserError(damaged % f"token {token!r} has the id {id!r}; ids are 0 to {LARGEST_ID}")
    if len(set(vocab.values())) != len(vocab):
        seen: dict[int, str] = {}
        first, second = next(
            (seen[id], token) for token, id in vocab.items() if seen.setdefault(id, token) != token
        )
        raise UserError(damaged % f"{first!r} and {second!r}, two tokens of its vocabulary, have the same id")


def is_id(value: Any) -> bool:
    """Whether a value is a number that a token can have."""
    return type(value) is int and 0 <= value <= LARGEST_ID


def check_definition(definition: Any, path: Path) -> None:
    """Refuse a tokenizer.json that is damaged or no BPE that we apply exactly."""
    damaged = f"{path} is no valid tokenizer.json (%s); it is damaged: copy or train it again"
    if not isinstance(definition, dict) or not isinstance(definition.get("model"), dict):
        raise UserError(damaged % "it has no model")
    model = definition["model"]
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind != "BPE":
        raise UserError(f"{path} holds a {kind} tokenizer; use one of BPE (GPT-2, Llama, Qwen2, Gemma …)")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise UserError(
                f"{path} uses BPE with {option}={model[option]!r}, which is not supported; use one of BPE without it"
                " (GPT-2, Llama, Qwen2, Gemma …)"
            )
    check_vocabulary(model.get("vocab"), path)
    if not isinstance(model.get("merges"), list):
        raise UserError(damaged % "it has no list of merges")
    for number, merge in enumerate(model["merges"], 1):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(token, str) for token in pair):
            raise UserError(damaged % f"merge {number} is {merge!r}, not two tokens")
    added = definition.get("added_tokens") or []
    if not isinstance(added, list) or not all(
        isinstance(token, dict) and isinstance(token.get("content"), str) and type(token.get("id")) is int
        for token in added
    ):
        raise UserError(damaged % "an added token lacks its content or its id")
    for token in added:
        if not is_id(token["id"]):
            raise UserError(
                damaged % f"token {token['content']!r} has the id {token['id']}; ids are 0 to {LARGEST_ID}"
            )


def check_byte_tokens(model: dict[str, Any], path: Path) -> None:
    """Refuse byte fallback without all 256 byte tokens: some characters would have no ids."""
    missing = [byte_token(byte) for byte in range(256) if byte_token(byte) not in model["vocab"]]
    if model.get("byte_fallback") and missing:
        raise UserError(
            f"{path} uses byte fallback, but lacks {len(missing)} of the 256 byte tokens ({missing[0]} is the first); copy the"
            " vocabulary again, or set byte_fallback to false"
        )
