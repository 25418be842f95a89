"""Encoding documents: one call of the library.

Level 2 applies the merges word by word, level 3 to all words of a text in one array.

    v1 tokenizer --config smoke
"""

import numpy as np
from transformers import PreTrainedTokenizerFast

from shared_data.corpus.token_files import Encode


def document_encoder(tokenizer: PreTrainedTokenizerFast) -> Encode:
    """A function from documents to their ids in a row, each document followed by the token that ends it.

    A special token spelled out in a document stays ordinary text.
    """

    def encode(texts: list[str]) -> np.ndarray:
        ids = tokenizer(texts, split_special_tokens=True).input_ids
        return np.concatenate([[*document, tokenizer.eos_token_id] for document in ids])

    return encode
