"""Perplexity and bits per byte of a sentence of four tokens, as in v2_handwritten/inference/scoring.md."""

import math

import numpy as np
import torch

from shared_data.evaluation.windows import Score, bits_per_byte, perplexity, plan_windows
from tests.worked import agrees
from v2_handwritten.inference.scoring import negative_log_softmax

PAGE = "v2_handwritten/inference/scoring.md"

# Before each token of "the cat sat down", the logits of the vocabulary: the, cat, sat, down.
LOGITS = torch.tensor([[1.0, 0, 0, 0], [0, 2, 1, 0], [0, 1, 0, 1], [0, 0, 1, 2]])
TOKENS = ["the", " cat", " sat", " down"]
BYTES = len(b"the cat sat down")
NATS = negative_log_softmax(LOGITS, torch.tensor([0, 1, 2, 3]))


def test_surprise_at_each_token() -> None:
    rows = [NATS.neg().exp(), NATS, NATS / math.log(2), torch.tensor([len(token) for token in TOKENS])]
    agrees(PAGE, "token", torch.stack(rows, dim=1))


def test_perplexity_depends_on_the_tokenizer_and_bits_per_byte_do_not() -> None:
    """The same probability of the text, written in four tokens or in two."""
    nats = float(NATS.sum())
    scores = [Score(nats, tokens=4), Score(nats, tokens=2)]
    rows = [
        [score.nats, score.nats / score.tokens, perplexity(score), bits_per_byte(score, BYTES)]
        for score in scores
    ]
    agrees(PAGE, "text", rows)


def test_a_mean_of_window_means_is_another_number() -> None:
    """A context of three: the first window scores three tokens, the second one."""
    windows = plan_windows(0, 5, context_length=3, stride=3)
    nats = np.concatenate([[np.nan], NATS])  # the end of text before the first token is not scored
    means = [nats[window.scored : window.end].mean() for window in windows]
    agrees(
        PAGE,
        "windows",
        [[window.end - window.scored, mean] for window, mean in zip(windows, means, strict=True)],
    )
    assert [round(math.exp(mean), 2) for mean in (np.mean(means), float(NATS.mean()))] == [2.2, 2.55]
