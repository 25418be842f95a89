"""What is checked when a tokenizer is read, before anything is built from it: every refusal names the file and the remedy.

uv run python -c "from shared_data.tokenizer.tokenizer_check import *; check_vocabulary({'a': 0, 'b': 1}, 'vocab.json')"
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from shared_data.errors import UserError
from shared_data.foreign_json import ForeignJson, TokenId
from shared_data.tokenizer.word_encoder import byte_token

REMEDY = "it is damaged: copy or train it again"
# Two tokens; before `tokenizers` 0.20 they were one text with a space between.
Merge = (
    Annotated[str, Field(pattern=r"^[^ ]* [^ ]*$")] | Annotated[list[str], Field(min_length=2, max_length=2)]
)


class _AddedToken(ForeignJson):
    id: TokenId
    content: str


class _Bpe(ForeignJson):
    vocab: Annotated[dict[str, TokenId], Field(min_length=1)]
    merges: list[Merge]
    unk_token: str | None = None


class TokenizerJson(ForeignJson):
    """A tokenizer.json of BPE. The steps before and after the model are checked where each is built."""

    model: _Bpe
    added_tokens: list[_AddedToken] | None = None
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None


class Vocabulary(ForeignJson):
    """A vocab.json or an added_tokens.json: the tokens are the names of its entries."""

    tokens: dict[str, TokenId]


class _Place(ForeignJson):
    id: str


class _Piece(ForeignJson):
    Sequence: dict[str, Any] | None = None
    SpecialToken: _Place | None = None


class _Ids(ForeignJson):
    ids: list[TokenId]


class Template(ForeignJson):
    """A post-processor of the type TemplateProcessing: the text, and special tokens around it."""

    single: list[_Piece]
    special_tokens: dict[str, _Ids]


def check_vocabulary(vocab: Any, path: Path | str) -> None:
    """Refuse a vocabulary that is no dictionary of tokens and different ids."""
    Vocabulary.read({"tokens": vocab}, path, REMEDY)
    _check_different(vocab, path)


def _check_different(vocab: dict[str, int], path: Path | str) -> None:
    if not vocab:
        raise UserError(f"{path} has no tokens; {REMEDY}")
    if len(set(vocab.values())) != len(vocab):
        seen: dict[int, str] = {}
        first, second = next(
            (seen[id], token) for token, id in vocab.items() if seen.setdefault(id, token) != token
        )
        raise UserError(f"{path}: {first!r:.40} and {second!r:.40}, two tokens, have the same id; {REMEDY}")


def check_definition(definition: dict[str, Any], path: Path) -> None:
    """Refuse a tokenizer.json that is damaged or no BPE that we apply exactly."""
    model = definition.get("model")
    if isinstance(model, dict):
        kind = model.get("type", "BPE" if "merges" in model else None)
        if kind != "BPE":
            raise UserError(
                f"{path} holds a {kind!s:.40} tokenizer; use one of BPE (GPT-2, Llama, Qwen2, Gemma …)"
            )
        for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
            if model.get(option):
                raise UserError(
                    f"{path} uses BPE with {option}={model[option]!r:.40}, which is not supported; use one of BPE without it"
                    " (GPT-2, Llama, Qwen2, Gemma …)"
                )
    check_bpe(definition, path)


def check_bpe(definition: dict[str, Any], path: Path) -> None:
    """Refuse a tokenizer.json of BPE that is damaged."""
    _check_different(TokenizerJson.read(definition, path, REMEDY).model.vocab, path)


def check_byte_tokens(model: dict[str, Any], path: Path) -> None:
    """Refuse byte fallback without all 256 byte tokens: some characters would have no ids."""
    missing = [byte_token(byte) for byte in range(256) if byte_token(byte) not in model["vocab"]]
    if model.get("byte_fallback") and missing:
        raise UserError(
            f"{path} uses byte fallback, but lacks {len(missing)} of the 256 byte tokens ({missing[0]} is the first); copy the"
            " vocabulary again, or set byte_fallback to false"
        )
