"""Held-out text for the stage `evaluate`: its tokens, its size in bytes, and the entropy floor of exactly that text.

Perplexity counts tokens, bits per byte counts bytes, and the floor is -log2 P(text) / bytes; all three must be about the
same text, also when a limit on the tokens cuts it short. So it is cut between documents where that is possible.

A model from elsewhere reads the same documents in the tokens of its own tokenizer. Bits per byte can be compared, perplexities cannot.

    metrics = evaluate_held_out(negative_log_probs, model, tokenizer, found.tokenizer, settings.evaluate, run, context_length=256)
"""

import filecmp
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jaxtyping import Float, Int64, Integer

from shared_data.corpus.splits import read_documents
from shared_data.corpus.token_files import encode_split
from shared_data.errors import UserError
from shared_data.evaluation.windows import (
    NegativeLogProbs,
    bits_per_byte,
    perplexity,
    score_tokens,
    token_nats,
    total,
)
from shared_data.files import write_json
from shared_data.inference.prompts import encode_text, end_of_document
from shared_data.model_files.gguf import is_gguf
from shared_data.progress import progress
from shared_data.runs import RunFolder
from shared_data.settings import EvaluateSettings, Settings
from shared_data.tokenizer.tokenizer_file import read_tokenizer
from shared_data.training.data_loader import open_tokens, read_token_facts

LOSS_BY_POSITION = "loss_by_position.json"  # a list of numbers, in the folder of the stage


@dataclass(frozen=True)
class HeldOut:
    """Text to evaluate on; `floor_bits_per_byte` is None for text that is not of the story world."""

    tokens: np.ndarray
    bytes: int
    floor_bits_per_byte: float | None


def evaluate_held_out(
    negative_log_probs: NegativeLogProbs,
    model: Any,
    tokenizer: Any,
    tokenizer_path: Path,
    section: EvaluateSettings,
    run: RunFolder,
    context_length: int,
) -> dict[str, int | float]:
    """The numbers of the stage `evaluate`: a split of the run scored document by document, beside its entropy floor.

    tokenizer, tokenizer_path: the model's. Raises `UserError` for an empty split.
    """
    with tokens_in(tokenizer, tokenizer_path, run, section.split, model.config.vocab_size) as path:
        return _evaluate(negative_log_probs, model, tokenizer, path, section, run, context_length)


@contextmanager
def tokens_in(
    tokenizer: Any, tokenizer_path: Path, run: RunFolder, split: str, vocab_size: int
) -> Iterator[Path]:
    """The token file of a split: the run's or, for another tokenizer than the run's, one that is there for the moment."""
    if is_same_tokenizer(tokenizer_path, run.tokenizer):
        yield run.tokens(split)
        return
    end = end_of_document(tokenizer)

    def encode(texts: list[str]) -> Int64[np.ndarray, " T"]:
        return np.array([id for text in texts for id in (*encode_text(tokenizer, text), end)], np.int64)

    with TemporaryDirectory() as folder:
        target = Path(folder) / f"{split}.bin"
        encode_split(run.documents(split), target, encode, vocab_size, end)
        yield target


def _evaluate(
    negative_log_probs: NegativeLogProbs,
    model: Any,
    tokenizer: Any,
    path: Path,
    section: EvaluateSettings,
    run: RunFolder,
    context_length: int,
) -> dict[str, int | float]:
    """The same for one token file."""
    facts = read_token_facts(path)
    held_out = read_held_out(
        run,
        section.split,
        open_tokens(path),
        facts,
        section.max_tokens,
        lambda ids: len(tokenizer.decode(ids).encode()),
    )
    started = time.perf_counter()
    with progress(len(held_out.tokens), "evaluate", "tokens") as bar:
        nats = token_nats(
            negative_log_probs,
            model,
            held_out.tokens,
            context_length,
            section.stride or max(1, context_length // 2),
            section.batch_size,
            facts["end_of_text_id"],
            bar.update,
        )
    seconds = time.perf_counter() - started
    score = total(nats)
    if "evaluate" in run.in_progress:  # for the report
        means = loss_by_position(nats, held_out.tokens, facts["end_of_text_id"])
        write_json(run.stage("evaluate") / LOSS_BY_POSITION, means)
    metrics: dict[str, int | float] = {
        "perplexity": perplexity(score),
        "bits_per_byte": bits_per_byte(score, held_out.bytes),
        "tokens": score.tokens,
        "bytes": held_out.bytes,
        "tokens_per_second": score.tokens / seconds,
    }
    if held_out.floor_bits_per_byte is not None:
        metrics["floor_bits_per_byte"] = held_out.floor_bits_per_byte
        metrics["ratio_to_floor"] = metrics["bits_per_byte"] / held_out.floor_bits_per_byte
    return metrics


def loss_by_position(
    nats: Float[np.ndarray, " N"], tokens: Integer[np.ndarray, " N"], end_of_text_id: int, fewest: int = 50
) -> list[float]:
    """Mean nats of the tokens at each place of their document, from the first to the last place that `fewest` documents reach."""
    ends = np.flatnonzero(tokens == end_of_text_id)
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else np.zeros(1, int)
    places = (
        np.arange(len(tokens)) - starts[np.searchsorted(starts, np.arange(len(tokens)), side="right") - 1]
    )
    known = ~np.isnan(nats)
    counts = np.bincount(places[known])
    sums = np.bincount(places[known], weights=nats[known])
    reached = int(np.argmin(np.append(counts >= fewest, False)))
    return (sums[:reached] / counts[:reached]).tolist()


def pretrained_metrics(
    negative_log_probs: NegativeLogProbs, model: Any, settings: Settings, run: RunFolder
) -> dict[str, float]:
    """Perplexity and bits per byte on the whole validation split, and the fewest bits per byte possible where that is known."""
    path, context = run.tokens("validation"), settings.pretrain.sequence_length
    facts = read_token_facts(path)
    stride = min(settings.evaluate.stride or max(1, context // 2), context)
    batch_size, end = settings.evaluate.batch_size, facts["end_of_text_id"]
    score = score_tokens(negative_log_probs, model, open_tokens(path), context, stride, batch_size, end)
    metrics = {"perplexity": perplexity(score), "bits_per_byte": bits_per_byte(score, facts["bytes"])}
    floor = _floor(facts.get("log2_probability"), facts["bytes"])
    return metrics | ({} if floor is None else {"floor_bits_per_byte": floor})


def read_held_out(
    run: RunFolder,
    split: str,
    tokens: np.ndarray,
    facts: dict[str, Any],
    max_tokens: int | None,
    count_bytes: Callable[[list[int]], int],
) -> HeldOut:
    """The first `max_tokens` of a split's `tokens`, or all of them; `facts` is the description beside the token file.

    `count_bytes` measures ids that end inside a document, which happens only where the first one exceeds the limit.
    Raises `UserError` for an empty split.
    """
    if not len(tokens):
        raise UserError(
            f"the {split} split is empty; evaluate on the other one with --set evaluate.split=validation"
        )
    if tokens[:max_tokens].max() >= facts["vocab_size"]:
        raise UserError(
            f"{run.tokens(split)} holds ids beyond its vocabulary of {facts['vocab_size']}; it is damaged: run the stage "
            "`tokenizer` again with --force"
        )
    if max_tokens is None or max_tokens >= len(tokens):
        return HeldOut(tokens, facts["bytes"], _floor(facts.get("log2_probability"), facts["bytes"]))
    ends = np.flatnonzero(tokens[:max_tokens] == facts["end_of_text_id"])
    if not len(ends):
        return HeldOut(tokens[:max_tokens], count_bytes(tokens[:max_tokens].tolist()), None)
    documents = list(islice(read_documents(run.documents(split)), len(ends)))
    size = sum(len(document.text.encode("utf-8")) for document in documents)
    bits = [document.log2_probability for document in documents if document.log2_probability is not None]
    known = float(sum(bits)) if len(bits) == len(documents) else None
    return HeldOut(tokens[: ends[-1] + 1], size, _floor(known, size))


def _floor(log2_probability: float | None, size: int) -> float | None:
    return None if log2_probability is None else -log2_probability / size


def is_same_tokenizer(one: Path, other: Path) -> bool:
    """Whether two tokenizers, each a file or its folder, have the same tokens and merges."""
    one, other = (
        path / "tokenizer.json" if (path / "tokenizer.json").is_file() else path for path in (one, other)
    )
    if one == other or (one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)):
        return True
    models = [read_tokenizer(path)[0]["model"] for path in (one, other)]
    return all(models[0].get(key) == models[1].get(key) for key in ("vocab", "merges"))


def check_vocabulary(checkpoint: Path, model_vocab_size: int, tokenizer: Path, vocab_size: int) -> None:
    """Raise `UserError` where a model was trained with another tokenizer than the one its text is encoded with.

    A model may have more ids than the tokenizer: some checkpoints pad their vocabulary to a round number.
    """
    own = checkpoint if is_gguf(checkpoint) else checkpoint / "tokenizer.json"
    tokenizer = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    if own.is_file() and tokenizer.is_file() and not is_same_tokenizer(own, tokenizer):
        raise UserError(
            f"the model in {checkpoint} has another tokenizer than {tokenizer}; use a model that was trained with this one"
        )
    if model_vocab_size < vocab_size:
        raise UserError(
            f"the model in {checkpoint} has a vocabulary of {model_vocab_size}, the tokenizer {tokenizer} one of "
            f"{vocab_size}; use the tokenizer that the model was trained with"
        )
