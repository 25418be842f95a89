"""Step 3 of a `tokenizer.json`: the model. From pre-tokens to ids: symbols, then the merges of a level, then the model's options.

The symbols that merging begins with are the bytes of a pre-token (byte-level BPE), or its characters. A character that the vocabulary
lacks becomes its bytes (`byte_fallback`: `<0xE7>` `<0x8B>` `<0x90>`), or the unknown token, or nothing.

The merges themselves are each level's own (`data_pipeline/tokenizer/bpe_encode.py`): level 2 merges word by word, level 3 all words
in one flat array. Level 1 uses `tokenizers`.

    uv run python -c "from shared_data.tokenizer.word_encoder import *; from v2_handwritten.data_pipeline.tokenizer.bpe_encode import *; \
print(WordEncoder(Merges, merge_words, {'l': 0, 'o': 1, 'w': 2, 'lo': 3}, [('l', 'o')]).encode(['low']))"
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from shared_data.errors import UserError
from shared_data.tokenizer.byte_level import BYTE_TO_SYMBOL, text_to_symbols
from shared_data.tokenizer.pre_tokenizer import SPACE

MergeWords = Callable[[Sequence[Sequence[int]], Any], list[list[int]]]  # the ids of words, merged


class WordEncoder:
    """From pre-tokens to their ids: the vocabulary, the merges, and the options of a `tokenizer.json` model."""

    def __init__(
        self,
        merges_type: Callable[[list[tuple[int, int]], list[int]], Any],
        merge_words: MergeWords,
        vocab: dict[str, int],
        merges: list[tuple[str, str]],
        ignore_merges: bool = False,
        unknown_token: str | None = None,
        fuse_unknown: bool = False,
        byte_level: bool = True,
        byte_fallback: bool = False,
    ) -> None:
        """`merges` are pairs of tokens, most important first; raises `UserError` for one that is not in `vocab`.

        `merges_type` prepares the pairs and the ids they make for `merge_words`.
        """
        self._merge_words = merge_words
        self._whole_words = vocab if ignore_merges else {}
        try:
            pairs = [(vocab[left], vocab[right]) for left, right in merges]
            self._merges = merges_type(pairs, [vocab[left + right] for left, right in merges])
            self._unknown_id = None if unknown_token is None else vocab[unknown_token]
        except KeyError as error:
            raise UserError(
                f"the merges or the unknown token name {error}, which is not in the vocabulary; the file is damaged or its"
                " vocabulary and merges belong to different tokenizers"
            ) from error
        self._byte_ids = [vocab.get(BYTE_TO_SYMBOL[byte]) for byte in range(256)]
        self._byte_level = byte_level
        self._character_ids = _CharacterIds(vocab, byte_fallback)
        self._fuse_unknown = fuse_unknown

    def encode(self, words: Sequence[str]) -> list[list[int]]:
        """Ids of each pre-token."""
        if self._byte_level:
            symbols = [self._bytes_to_ids(word.encode("utf-8")) for word in words]
        else:
            symbols = [self._characters_to_ids(word) for word in words]
        ids = self._merge_words(symbols, self._merges)
        if (
            self._whole_words
        ):  # ignore_merges (Llama-3): a word that is a token is that token, whatever the merges
            for place, word in enumerate(words):
                whole = self._whole_words.get(text_to_symbols(word) if self._byte_level else word)
                if whole is not None:
                    ids[place] = [whole]
        return ids

    def _bytes_to_ids(self, data: bytes) -> list[int]:
        """One id a byte; a byte outside of the vocabulary becomes the unknown token, or nothing where there is none."""
        ids = []
        for byte in data:
            known = self._byte_ids[byte]
            if known is not None:
                ids.append(known)
            elif self._unknown_id is not None and not (
                self._fuse_unknown and ids and ids[-1] == self._unknown_id
            ):
                ids.append(self._unknown_id)
        return ids

    def _characters_to_ids(self, word: str) -> list[int]:
        """One id a character, or those of its bytes; one that has neither becomes the unknown token, or nothing."""
        ids: list[int] = []
        after_unknown = False
        for known in map(self._character_ids.__getitem__, word):
            if known:
                ids += known
            elif self._unknown_id is not None and not (self._fuse_unknown and after_unknown):
                ids.append(self._unknown_id)
            after_unknown = not known
        return ids


class _CharacterIds(dict[str, list[int]]):
    """The ids of each character met so far; none for one that has no id."""

    def __init__(self, vocab: dict[str, int], byte_fallback: bool) -> None:
        super().__init__()
        self._vocab = vocab
        self._bytes = [vocab[byte_token(byte)] for byte in range(256)] if byte_fallback else []

    def __missing__(self, character: str) -> list[int]:
        data = character.encode("utf-8")  # first, so that a lone surrogate is refused in any case
        if character in self._vocab:
            ids = [self._vocab[character]]
        else:
            ids = [self._bytes[byte] for byte in data] if self._bytes else []
        self[character] = ids
        return ids


def byte_token(byte: int) -> str:
    """The token that stands for a byte: `<0x0A>`."""
    return f"<0x{byte:02X}>"


def ends_before_spaces(model: dict[str, Any], merges: Sequence[tuple[str, str]]) -> bool:
    """Whether no token that merging makes goes on with a `▁` after another character.

    Then nothing ever merges across such a place, and a text without a pre-tokenizer may be cut there: it gets the same ids, from words
    that can be remembered. So it is in Llama-2, Mistral and Gemma. (Not so where a text may be one token as a whole, or where unknown
    characters are left out, so that what stands around them meets.)
    """
    inside = re.compile(f"[^{SPACE}]{SPACE}")
    leaves_out = not model.get("byte_fallback") and model.get("unk_token") is None
    if model.get("ignore_merges") or leaves_out or SPACE not in model["vocab"]:
        return False
    return not any(inside.search(left + right) for left, right in merges)
