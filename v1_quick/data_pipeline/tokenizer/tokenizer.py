"""The tokenizer: text to ids and back, by `tokenizers` (Rust).

Level 2 reads the same `tokenizer.json` by hand and gives the same ids; level 3 merges words as arrays.

    python -c "from v1_quick.data_pipeline.tokenizer.bpe_train import train_bpe; t = train_bpe(['a cat, a hat'], 260); print(t.encode('a rat'))"
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import UInt32

from shared_data.errors import UserError
from v1_quick.data_pipeline.tokenizer.tokenizer_file import read_tokenizer, write_tokenizer

END_OF_TEXT_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>")


class Tokenizer:
    """A byte-level BPE tokenizer; build it with `train_bpe` or `Tokenizer.load`."""

    def __init__(self, definition: tokenizers.Tokenizer, config: dict[str, Any] | None = None) -> None:
        """From the library's form of `tokenizer.json` and the content of `tokenizer_config.json`."""
        self.backend = definition
        self.config = config or {}
        added = self.backend.get_added_tokens_decoder()
        self.special_tokens: dict[str, int] = {
            token.content: id for id, token in added.items() if token.special
        }

    @property
    def vocab_size(self) -> int:
        """The number of ids a model needs: the largest id, and one more."""
        return max(self.backend.get_vocab().values()) + 1

    @property
    def end_of_text_id(self) -> int:
        """The id that ends a document; raises `UserError` for a tokenizer that has none."""
        configured = self.config.get("eos_token")
        if isinstance(configured, dict):  # older files have the fields of the added token
            configured = configured.get("content")
        for token in (*END_OF_TEXT_NAMES, configured, *self.special_tokens):
            if token in self.special_tokens:
                return self.special_tokens[token]
        raise UserError("the tokenizer has no special token to end a document; train it with <|endoftext|>")

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as the file writes it (`Ġthe`), or None."""
        return self.backend.token_to_id(token)

    def id_to_token(self, id: int) -> str | None:
        """The token of an id as the file writes it, or None."""
        return self.backend.id_to_token(id)

    def encode(self, text: str, allow_special: bool = True, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text; see level 2 for the two options. Raises `UserError` for lone surrogates."""
        return self.encode_batch([text], allow_special, add_special_tokens)[0]

    def encode_batch(
        self, texts: Iterable[str], allow_special: bool = True, add_special_tokens: bool = True
    ) -> list[list[int]]:
        """The ids of each text."""
        texts = list(texts)
        self.backend.encode_special_tokens = not allow_special
        try:
            encodings = self.backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        except TypeError as error:  # what the bindings make of a string that has no UTF-8
            raise UserError(
                "the text holds a lone surrogate, which is half a character and no Unicode text; read the text with the"
                " right encoding, or remove it"
            ) from error
        return [encoding.ids for encoding in encodings]

    def encode_to_array(
        self, texts: Iterable[str], end_of_text: bool = False, allow_special: bool = False
    ) -> UInt32[np.ndarray, " T"]:
        """The ids of all texts in one array, for token files; each text followed by `end_of_text_id` if asked for."""
        end = [self.end_of_text_id] if end_of_text else []
        rows = [ids + end for ids in self.encode_batch(texts, allow_special)]
        return np.concatenate([np.asarray(row, np.uint32) for row in rows] or [np.zeros(0, np.uint32)])

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of ids; bytes that are no UTF-8 (half a character) become U+FFFD."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def save(self, folder: Path | str) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, which `AutoTokenizer.from_pretrained` loads."""
        write_tokenizer(folder, self.backend, self.config)

    @classmethod
    def load(cls, path: Path | str) -> "Tokenizer":
        """From a folder, a `tokenizer.json`, or a `vocab.json` beside its `merges.txt`.

        Raises `UserError` where it is missing or damaged.
        """
        return cls(*read_tokenizer(path))
