"""Training byte-level BPE: the library's `BpeTrainer`.

Sennrich, Haddow and Birch (2016), section 3.2, on bytes (Radford et al. 2019). Level 2 writes the algorithm with a word
multiset, a pair index and a heap; level 3 with arrays. All three give the same merges and ids.

    python -c "from v1_quick.data_pipeline.tokenizer.bpe_train import train_bpe; print(train_bpe(['low low lower'], 260).encode('lowest'))"
"""

from collections.abc import Iterable, Iterator, Sequence

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from shared_data.errors import UserError
from v1_quick.data_pipeline.tokenizer.byte_level import ALPHABET
from v1_quick.data_pipeline.tokenizer.split_patterns import PATTERNS
from v1_quick.data_pipeline.tokenizer.tokenizer import Tokenizer
from v1_quick.data_pipeline.tokenizer.tokenizer_file import new_config


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    pattern: str = "gpt4",
    special_tokens: Sequence[str] = (),
    min_frequency: int = 2,
    show_progress: bool = False,
) -> Tokenizer:
    """Learn a tokenizer from texts, read once as they come.

    `vocab_size` counts the special tokens and the 256 bytes; fewer tokens come out where no pair is left that occurs at least
    `min_frequency` times. Raises `UserError` for a vocabulary too small or a corpus without text.
    """
    _check_sizes(vocab_size, special_tokens, pattern)
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERNS[pattern]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(special_tokens),
        initial_alphabet=ALPHABET,
        show_progress=show_progress,
    )
    backend.train_from_iterator(_checked(texts), trainer)
    return Tokenizer(backend, new_config(special_tokens))


def _check_sizes(vocab_size: int, special_tokens: Sequence[str], pattern: str) -> None:
    """Refuse what the library would train into something unusable."""
    least = len({*special_tokens, *ALPHABET})
    if vocab_size < least:
        raise UserError(
            f"a vocabulary of {vocab_size} is too small for 256 bytes and {least - 256} special tokens; set"
            f" tokenizer.vocab_size to {least} or more"
        )
    if "" in special_tokens:
        raise UserError("a special token is empty; give each special token at least one character")
    if pattern not in PATTERNS:
        raise UserError(f"unknown split pattern {pattern!r}; use one of {', '.join(PATTERNS)}")


def _checked(texts: Iterable[str]) -> Iterator[str]:
    """The texts as they come; raises `UserError` where none holds a character, or one cannot be UTF-8."""
    empty = True
    for text in texts:
        empty = empty and not text
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(
                "the corpus holds a lone surrogate, which is half a character and no Unicode text; read the corpus with"
                " the right encoding (data.encoding), or remove it"
            ) from error
        yield text
    if empty:
        raise UserError("the corpus holds no text to train a tokenizer on; check data.source")
