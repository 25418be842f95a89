"""From pre-tokens to ids: bytes, then the merges of a level, then the options of a `tokenizer.json` model.

The merges themselves are each level's own (`data_pipeline/tokenizer/bpe_encode.py`): level 2 merges word by word, level 3 all words
in one flat array. Level 1 uses `tokenizers`.

    uv run python -c "from shared_data.tokenizer.word_encoder import *; from v2_handwritten.data_pipeline.tokenizer.bpe_encode import *; \
print(WordEncoder(Merges, merge_words, {'l': 0, 'o': 1, 'w': 2, 'lo': 3}, [('l', 'o')]).encode(['low']))"
"""

from collections.abc import Callable, Sequence
from typing import Any

from shared_data.errors import UserError
from shared_data.tokenizer.byte_level import BYTE_TO_SYMBOL

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
    ) -> None:
        """`merges` are pairs of tokens, most important first; raises `UserError` for one that is not in `vocab`.

        `merges_type` prepares the pairs and the ids they make for `merge_words`.
        """
        self._merge_words = merge_words
        self._vocab = vocab if ignore_merges else {}
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
        self._fuse_unknown = fuse_unknown

    def encode(self, words: Sequence[str]) -> list[list[int]]:
        """Ids of each pre-token."""
        data = [word.encode("utf-8") for word in words]
        ids = self._merge_words([self._bytes_to_ids(word) for word in data], self._merges)
        if self._vocab:  # ignore_merges (Llama-3): a word that is a token is that token, whatever the merges
            for place, word in enumerate(data):
                whole = self._vocab.get("".join(map(BYTE_TO_SYMBOL.__getitem__, word)))
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
