"""Training byte-level BPE: the `BpeTrainer` of tokenizers, as a `PreTrainedTokenizerFast` of transformers.

Sennrich, Haddow and Birch (2016), section 3.2, on bytes (Radford et al. 2019). Level 2 writes the algorithm with a word
multiset, a pair index and a heap; level 3 with arrays. All three give the same merges and ids.

    uv run python -c "from v1_quick.data_pipeline.tokenizer.bpe_train import train_bpe; print(train_bpe(['low low lower'], 260).encode('lowest'))"
"""

from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from shared_data.tokenizer.chat_template import CHAT_TEMPLATE
from shared_data.tokenizer.split_patterns import PATTERNS


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    pattern: str = "gpt4",
    special_tokens: Sequence[str] = (),
    min_frequency: int = 2,
    show_progress: bool = False,
) -> PreTrainedTokenizerFast:
    """Learn a tokenizer from texts, read once as they come; the first special token ends a document.

    `vocab_size` counts the special tokens and the 256 bytes; fewer tokens come out where no pair is left that occurs at least
    `min_frequency` times.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERNS[pattern]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=show_progress,
    )
    tokenizer.train_from_iterator(texts, trainer)
    end_of_text = next(iter(special_tokens), None)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=end_of_text,
        eos_token=end_of_text,
        pad_token="<|pad|>" if "<|pad|>" in special_tokens else None,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
