"""Every token is predicted once, as transformers' recipe would if it counted tokens; the true model scores the entropy."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from shared_data.errors import UserError
from shared_data.evaluation.windows import (
    Score,
    bits_per_byte,
    perplexity,
    plan_windows,
    score_tokens,
    token_nats,
)
from shared_data.model_files.config import ModelConfig
from tests.parity.arrays import integers
from tests.parity.inference_cases import trio
from tests.parity.recorder import ParityRecorder
from v2_handwritten.inference import scoring as v2
from v2_handwritten.models.transformer import Transformer
from v3_numpy_deep.autograd import Tensor
from v3_numpy_deep.inference import scoring as v3
from v3_numpy_deep.models.transformer import Transformer as ArrayTransformer

LEVELS = (v2, v3)
END = 3  # closes a document
CASES = ["gpt2", "llama GQA"]


def library_recipe(model: Any, tokens: np.ndarray, max_length: int, stride: int) -> tuple[float, float]:
    """https://huggingface.co/docs/transformers/perplexity: nats per token, and the mean of the windows' means.

    A window of `max_length` tokens has `max_length` - 1 inputs that predict something.
    """
    losses, counts, previous_end = [], [], 0
    for begin in range(0, len(tokens), stride):
        end = min(begin + max_length, len(tokens))
        input_ids = torch.from_numpy(tokens[None, begin:end])
        target_ids = input_ids.clone()
        target_ids[:, : -(end - previous_end)] = -100
        with torch.no_grad():
            losses.append(model.library(input_ids, labels=target_ids).loss.item())
        counts.append((target_ids[:, 1:] != -100).sum().item())
        previous_end = end
        if end == len(tokens):
            break
    return float(np.dot(losses, counts)) / sum(counts), float(np.mean(losses))


def documents(*lengths: int) -> np.ndarray:
    """Documents of random tokens, each closed by END."""
    rows = [np.append(integers(length, 90, length) % 86 + 4, END) for length in lengths]
    return np.concatenate(rows)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stride", [16, 6])
def test_the_score_of_a_stream_is_that_of_the_library_recipe(
    parity: ParityRecorder, case: str, stride: int
) -> None:
    tokens = integers(1, 96, 103)
    library, *models = trio(case)
    expected, mean_of_means = library_recipe(library, tokens, max_length=17, stride=stride)
    for name, level, model in zip(("v2", "v3"), LEVELS, models, strict=True):
        score = score_tokens(level.negative_log_probs, model, tokens, 16, stride, batch_size=3)
        assert score.tokens == len(tokens) - 1
        parity(
            component="perplexity",
            quantity=f"nats per token, stride {stride}",
            levels=f"{name}-HF recipe",
            actual=score.nats / score.tokens,
            expected=expected,
            tolerance=2e-7,  # the library computes the loss in float32
        )
    assert abs(mean_of_means - expected) > 1e-3, "and its mean of means is something else"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("end", [None, END], ids=["stream", "documents"])
def test_the_levels_agree(parity: ParityRecorder, case: str, end: int | None) -> None:
    tokens = documents(5, 40, 1, 16, 15, 17, 0, 3)
    options = {"context_length": 16, "stride": 6, "batch_size": 3, "end_of_text_id": end}
    _, *models = trio(case)
    nats, array_nats = (
        token_nats(level.negative_log_probs, model, tokens, **options)
        for level, model in zip(LEVELS, models, strict=True)
    )
    score = score_tokens(v2.negative_log_probs, models[0], tokens, **options)
    assert (score.nats, score.tokens) == (np.nansum(nats), np.isfinite(nats).sum())
    parity(
        component=f"perplexity of {'documents' if end else 'a stream'}",
        quantity="nats of each token",
        levels="v3-v2",
        actual=array_nats,
        expected=nats,
        tolerance=1e-14,
    )


@pytest.mark.parametrize("case", CASES)
def test_each_document_is_scored_as_if_it_were_alone_after_one_end_of_text(case: str) -> None:
    """Read after one END, so that its first word and its closing END are predicted, each once."""
    lengths = (5, 12, 1, 9)
    tokens = documents(*lengths)
    _, ours, _ = trio(case)
    nats = token_nats(
        v2.negative_log_probs, ours, tokens, context_length=16, stride=8, batch_size=2, end_of_text_id=END
    )
    assert not np.isnan(nats).any()
    expected, start = [], 0
    for length in lengths:
        document = tokens[start : start + length + 1]
        with torch.no_grad():
            logits = ours(torch.from_numpy(np.append(END, document[:-1])[None]))[0]
        expected.append(-logits.log_softmax(-1).numpy()[np.arange(length + 1), document])
        start += length + 1
    np.testing.assert_allclose(nats, np.concatenate(expected), rtol=1e-12)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 18, 100])
@pytest.mark.parametrize("stride", [1, 5, 16])
def test_each_token_is_scored_once_with_enough_context(length: int, stride: int) -> None:
    windows = plan_windows(10, 10 + length, 16, stride)
    scored = [token for window in windows for token in range(window.scored, window.end)]
    assert scored == list(range(11, 10 + length))
    for window in windows:
        assert window.end - window.begin <= 17
        assert window.begin == 10 or window.scored - window.begin > 16 - stride


# A language of five documents, with their probabilities; END closes each.
LANGUAGE = {(1, 2, 4): 0.4, (1, 2): 0.3, (1, 0, 0, 0): 0.2, (4,): 0.0625, (): 0.0375}
TINIEST: dict[str, Any] = {
    "vocab_size": 5,
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}


def exact_logits(input_ids: np.ndarray) -> np.ndarray:
    """ln P(beginning, next token) after each END + beginning: adds up the documents that begin like this."""
    probabilities = np.full((*input_ids.shape, 5), 1e-300)
    for row, ids in enumerate(input_ids):
        for t in range(len(ids)):
            beginning = tuple(ids[1 : t + 1].tolist())
            for document, probability in LANGUAGE.items():
                closed = (*document, END)
                if closed[:t] == beginning and t < len(closed):
                    probabilities[row, t, closed[t]] += probability
    return np.log(probabilities)


class ExactTorchModel(Transformer):
    """The language itself, in place of a model that has learned it."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(exact_logits(input_ids.numpy()))


class ExactArrayModel(ArrayTransformer):
    """The same for level 3."""

    def forward(self, input_ids: np.ndarray) -> Tensor:
        return Tensor(exact_logits(input_ids))


def test_a_model_that_is_the_distribution_scores_exactly_the_entropy_floor() -> None:
    """The exercise of scoring.md. Each document is there as often as it is probable, so the mean score is the entropy."""
    copies = {document: round(probability * 80) for document, probability in LANGUAGE.items()}
    tokens = np.array([id for document, n in copies.items() for id in (*document, END) * n])
    entropy = -sum(p * math.log2(p) for p in LANGUAGE.values())  # bits per document
    size = 10 * 80  # say ten bytes a document
    torch_model = ExactTorchModel(ModelConfig(**TINIEST))
    array_model = ExactArrayModel(ModelConfig(**TINIEST))
    for level, model in ((v2, torch_model), (v3, array_model)):
        score = score_tokens(level.negative_log_probs, model, tokens, 8, 4, 4, end_of_text_id=END)
        assert score.tokens == len(tokens)
        assert bits_per_byte(score, size) == pytest.approx(entropy / 10, rel=1e-14)


def test_perplexity_of_a_uniform_choice_is_the_number_of_choices() -> None:
    assert perplexity(Score(10 * math.log(50), 10)) == pytest.approx(50)
    assert bits_per_byte(Score(8 * math.log(2), 3), 4) == pytest.approx(2)


@pytest.mark.parametrize(
    ("tokens", "stride", "message"),
    [([5], 4, "no token to predict"), ([5, 6, 7], 17, "stride of 17"), ([5, 6, 7], 0, "stride of 0")],
)
def test_what_cannot_be_scored_is_named(tokens: list[int], stride: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        score_tokens(v2.negative_log_probs, trio("gpt2")[1], np.array(tokens), 16, stride, 2)
