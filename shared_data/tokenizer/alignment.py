"""Which bytes of a text each of its tokens stands for.

Byte-level tokens spell the text byte by byte. A tokenizer from SentencePiece puts a space before the first word that the text does not have
(`Hi` → `▁Hi`), so its tokens have more bytes than the text; one that composes accents (NFC) has other bytes. The first is worked out here, the
second is refused: to which of the original bytes a token belongs is then nowhere written down.

Level 1: `return_offsets_mapping` of `tokenizers`.

    uv run python -c "from shared_data.tokenizer.alignment import *; print(lengths_in(b'Hi you', [b' Hi', b' you']))"
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from shared_data.errors import UserError


def lengths_in(text: bytes, tokens: Sequence[bytes]) -> Int64[np.ndarray, " T"]:
    """How many bytes of the text each token stands for; raises `UserError` where the tokens do not spell it.

    >>> lengths_in(b"Hi you", [b" Hi", b" you"])
    array([2, 4])
    """
    lengths = np.array([len(token) for token in tokens], dtype=np.int64)
    if b"".join(tokens) == text:
        return lengths
    position = 0
    for place, token in enumerate(tokens):
        if not text.startswith(token, position):
            # The one thing that a tokenizer adds to a text: a space before a word.
            token = token.removeprefix(b" ")
            if not text.startswith(token, position):
                raise _not_spelled(text, position)
            lengths[place] = len(token)
        position += len(token)
    if position != len(text):
        raise _not_spelled(text, position)
    return lengths


def _not_spelled(text: bytes, position: int) -> UserError:
    seen = text[position : position + 20].decode("utf-8", errors="replace")
    return UserError(
        f"the tokens do not spell the text from byte {position} on ({seen!r}), so their places in it are unknown; use a tokenizer that"
        " changes no text, or a text in its normal form"
    )
