"""What BPE training begins with at levels 2 and 3: the first tokens of the vocabulary, and the words with their counts.

Learning the merges is each level's own (`data_pipeline/tokenizer/bpe_train.py`).

    uv run python -c "from shared_data.tokenizer.training import count_words; print(count_words(['low low lower'], 'gpt4'))"
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from shared_data.errors import UserError
from shared_data.tokenizer.byte_level import ALPHABET, text_to_symbols
from shared_data.tokenizer.split_patterns import PATTERNS, PatternSplitter, cut_long_text


def initial_vocab(vocab_size: int, special_tokens: Sequence[str]) -> dict[str, int]:
    """Special tokens first, then the 256 bytes in the order of `tokenizers`."""
    vocab = {token: id for id, token in enumerate(dict.fromkeys([*special_tokens, *ALPHABET]))}
    if vocab_size < len(vocab):
        raise UserError(
            f"a vocabulary of {vocab_size} is too small for 256 bytes and {len(vocab) - 256} special tokens; set"
            f" tokenizer.vocab_size to {len(vocab)} or more"
        )
    if "" in vocab:
        raise UserError("a special token is empty; give each special token at least one character")
    return vocab


def count_words(texts: Iterable[str], pattern: str) -> Counter[str]:
    """How often each pre-token occurs, written in symbols (one character a byte)."""
    if pattern not in PATTERNS:
        raise UserError(f"unknown split pattern {pattern!r}; use one of {', '.join(PATTERNS)}")
    split = PatternSplitter(PATTERNS[pattern]).split
    words: Counter[str] = Counter()
    for text in texts:
        for part in cut_long_text(text):
            words.update(split(part))
    if not words:
        raise UserError("the corpus holds no text to train a tokenizer on; check data.source")
    try:
        return Counter({text_to_symbols(word): count for word, count in words.items()})
    except UnicodeEncodeError as error:
        raise UserError(
            f"the corpus holds a lone surrogate in {error.object!r}, which is half a character and no Unicode text; read"
            " the corpus with the right encoding (data.encoding), or remove it"
        ) from error
