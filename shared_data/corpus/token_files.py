"""The tokens of a corpus, one file a split: what the stage `tokenizer` of all levels shares.

    documents → encode → train.bin, validation.bin, test.bin (16- or 32-bit ids, <|endoftext|> after every document)
                         and train.json, … (their type, their number, the bytes of text they stand for)

Training and loading a tokenizer stand in each level's `data_pipeline/prepare.py`.

    v2 tokenizer --config smoke
"""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from shared_data.corpus.conversations import read_conversations
from shared_data.corpus.splits import SPLITS, Metrics, in_batches, read_documents
from shared_data.errors import UserError
from shared_data.files import atomic_write, write_json
from shared_data.runs import RunFolder
from shared_data.settings import Settings

# Documents to their ids in a row, each with its end.
Encode = Callable[[list[str]], Integer[np.ndarray, " T"]]


def tokenizer_texts(settings: Settings, run: RunFolder) -> Iterator[str]:
    """The texts a tokenizer is trained on: the beginning of the training split, and the turns of conversations.

    Without conversations a small tokenizer would spell the words of questions letter by letter.
    """
    section = settings.tokenizer
    left = section.train_megabytes * 1e6
    for document in read_documents(run.documents("train")):
        yield document.text
        left -= len(document.text.encode("utf-8"))
        if left <= 0:
            break
    if section.chat_source is not None:
        conversations = read_conversations(settings.data, section.chat_source)
        for conversation in islice(conversations, section.chat_conversations):
            # After the role, as the chat template writes it.
            yield from (f"{message['role']}\n{message['content']}" for message in conversation.messages)


def write_tokens(
    settings: Settings, run: RunFolder, encode: Encode, vocab_size: int, end_of_text_id: int | None
) -> Metrics:
    """Encode every split; returns the numbers for metrics.json.

    Raises `UserError` where no token ends a document, or where a split is shorter than a training sequence.
    """
    if end_of_text_id is None:
        raise UserError(
            "the tokenizer names no token that ends a document; add eos_token to its tokenizer_config.json"
        )
    metrics: Metrics = {"vocab_size": vocab_size}
    least = settings.pretrain.sequence_length + 1
    for split in SPLITS:
        described = encode_split(run.documents(split), run.tokens(split), encode, vocab_size, end_of_text_id)
        if split != "test" and described["tokens"] < least:
            raise UserError(
                f"the {split} split has {described['tokens']:,} tokens, fewer than one sequence of pretrain.sequence_length + 1 = {least}; bring more text, hold out more of it (data.validation_fraction, data.test_fraction), or lower pretrain.sequence_length"
            )
        prefix = "" if split == "train" else f"{split}_"
        metrics[f"{prefix}tokens"] = described["tokens"]
        metrics[f"{prefix}bytes_per_token"] = described["bytes"] / max(1, described["tokens"])
        if described["log2_probability"] is not None:
            metrics[f"{prefix}floor_bits_per_byte"] = -described["log2_probability"] / described["bytes"]
    return metrics


def encode_split(
    documents: Path, target: Path, encode: Encode, vocab_size: int, end_of_text_id: int
) -> dict[str, Any]:
    """Encode documents into a flat file of ids, and describe it in a .json beside it; returns the description."""
    dtype = "uint16" if vocab_size <= 1 << 16 else "uint32"
    tokens = count = size = 0
    bits: float | None = None
    with atomic_write(target) as file:
        for batch in in_batches(read_documents(documents)):
            ids = encode([document.text for document in batch])
            file.write(ids.astype(dtype).tobytes())
            tokens += len(ids)
            count += len(batch)
            size += sum(len(document.text.encode("utf-8")) for document in batch)
            for document in batch:
                if document.log2_probability is not None:
                    bits = (bits or 0.0) + document.log2_probability
    description = {
        "dtype": dtype,
        "tokens": tokens,
        "documents": count,
        "bytes": size,
        "vocab_size": vocab_size,
        "end_of_text_id": end_of_text_id,
        "log2_probability": bits,
    }
    write_json(target.with_suffix(".json"), description)
    return description
