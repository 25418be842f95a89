"""The text of `quantize`: sequences to calibrate on, and held-out text to measure with.

Both are those of a run (the model's, else the command's). A file that the user names is calibrated on instead; without a run, its last
tenth is held out.

    texts = find_texts(run, found, file=None)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from shared_data.corpus.readers import read_documents as read_file
from shared_data.corpus.splits import read_documents as read_split
from shared_data.errors import UserError
from shared_data.evaluation.held_out import evaluate_held_out
from shared_data.evaluation.windows import NegativeLogProbs, perplexity, score_tokens
from shared_data.inference.prompts import encode_text, end_of_document
from shared_data.model_names import FoundModel
from shared_data.progress import progress
from shared_data.runs import RunFolder
from shared_data.settings import Settings

SEQUENCE_LENGTH = 512  # tokens of a sequence at most
MOST_TOKENS = 20_000  # of held-out text
_FOR_CALIBRATION = 0.9  # of a user's file


@dataclass(frozen=True)
class Texts:
    """Where text is: a run with its splits, a file of the user's, or both."""

    run: RunFolder | None
    file: Path | None
    settings: Settings

    def sequence_length(self, model: Any) -> int:
        """Tokens of a sequence: what the model was trained on, where that is known."""
        positions = min(model.config.max_position_embeddings, SEQUENCE_LENGTH)
        return positions if self.run is None else min(positions, self.settings.pretrain.sequence_length)


def find_texts(run: RunFolder, found: FoundModel, file: Path | None) -> Texts:
    """The user's file, and the run whose stage the model is, else that of the command, where it has text."""
    if file is not None and not file.is_file():
        raise UserError(f"there is no file {file}; name a text to calibrate on with --calibration FILE")
    for folder in (found.folder.resolve().parent, run.path):
        if (folder / "data" / "train.jsonl").is_file():
            return Texts(RunFolder(run.level, run.settings, folder), file, run.settings)
    return Texts(None, file, run.settings)


def calibration_ids(texts: Texts, tokenizer: Any, samples: int, length: int) -> Int64[np.ndarray, "N T"]:
    """The first `samples` sequences of the text. Raises `UserError` where there is none, or too little."""
    wanted = samples * length
    if texts.file is not None:
        ids = _ids_of_file(texts, tokenizer)
        ids = ids[: int(len(ids) * _FOR_CALIBRATION)]
    elif texts.run is not None:
        documents = (document.text for document in read_split(texts.run.documents("train")))
        ids = _encode(documents, tokenizer, wanted)
    else:
        raise UserError(
            "there is no calibration text, since the model is not of a run; name some with --calibration FILE"
        )
    if len(ids) < wanted:
        fewer = len(ids) // length
        remedy = f", or choose --calibration-samples {fewer}" if fewer else ""
        raise UserError(
            f"the calibration text has {len(ids):,} tokens, too few for {samples} sequences of {length}; name a longer text{remedy}"
        )
    return np.array(ids[:wanted], np.int64).reshape(samples, length)


def held_out_perplexity(
    texts: Texts, model: Any, tokenizer: Any, found: FoundModel, negative_log_probs: NegativeLogProbs
) -> float | None:
    """Perplexity on at most `MOST_TOKENS` tokens of the run's held-out text, or of the end of the user's file; None without any."""
    section, length = texts.settings.evaluate, texts.sequence_length(model)
    if texts.run is not None:
        limit = min(section.max_tokens or MOST_TOKENS, MOST_TOKENS)
        section = section.model_copy(update={"max_tokens": limit})
        metrics = evaluate_held_out(
            negative_log_probs, model, tokenizer, found.tokenizer, section, texts.run, length
        )
        return metrics["perplexity"]
    if texts.file is None:
        return None
    ids = _ids_of_file(texts, tokenizer)
    held_out = np.array(ids[int(len(ids) * _FOR_CALIBRATION) :][:MOST_TOKENS], np.int64)
    end, stride = end_of_document(tokenizer), max(1, length // 2)
    with progress(len(held_out), "evaluate", "tokens") as bar:
        score = score_tokens(
            negative_log_probs, model, held_out, length, stride, section.batch_size, end, bar.update
        )
    return perplexity(score)


def _ids_of_file(texts: Texts, tokenizer: Any) -> list[int]:
    """All tokens of the user's file."""
    assert texts.file is not None
    documents = (document.text for document in read_file(texts.file, texts.settings.data, True))
    return _encode(documents, tokenizer)


def _encode(documents: Iterator[str], tokenizer: Any, most: int | None = None) -> list[int]:
    """Each document after the token that ends the one before, until there are `most` tokens."""
    ids: list[int] = []
    end = end_of_document(tokenizer)
    for text in documents:
        ids += [end, *encode_text(tokenizer, text)]
        if most is not None and len(ids) >= most:
            break
    return ids
