"""Held-out text for the stage `evaluate`: its tokens, its size in bytes, and the entropy floor of exactly that text.

Perplexity counts tokens, bits per byte counts bytes, and the floor is -log2 P(text) / bytes; all three must be about the
same text, also when a limit on the tokens cuts it short. So it is cut between documents where that is possible.

    metrics = evaluate_held_out(negative_log_probs, model, tokenizer, settings.evaluate, run, context_length=256)
"""

import filecmp
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from shared_data.corpus.splits import read_documents
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
    section: EvaluateSettings,
    run: RunFolder,
    context_length: int,
) -> dict[str, int | float]:
    """The numbers of the stage `evaluate`: a split of the run scored document by document, beside its entropy floor.

    Raises `UserError` for an empty split.
    """
    path = run.tokens(section.split)
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


def check_vocabulary(checkpoint: Path, model_vocab_size: int, tokenizer: Path, vocab_size: int) -> None:
    """Raise `UserError` where a model was trained with another tokenizer than the one its text is encoded with.

    A model may have more ids than the tokenizer: some checkpoints pad their vocabulary to a round number.
    """
    own = checkpoint if is_gguf(checkpoint) else checkpoint / "tokenizer.json"
    if (
        own.is_file()
        and tokenizer.is_file()
        and own != tokenizer
        and not filecmp.cmp(own, tokenizer, shallow=False)
    ):
        theirs, ours = (read_tokenizer(path)[0]["model"] for path in (own, tokenizer))
        if any(theirs.get(key) != ours.get(key) for key in ("vocab", "merges")):
            raise UserError(
                f"the model in {checkpoint} has another tokenizer than {tokenizer}; use a model that was trained with this one"
            )
    if model_vocab_size < vocab_size:
        raise UserError(
            f"the model in {checkpoint} has a vocabulary of {model_vocab_size}, the tokenizer {tokenizer} one of "
            f"{vocab_size}; use the tokenizer that the model was trained with"
        )
