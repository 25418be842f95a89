"""The log-probability of "Mia <end>" after "Who <a>", as in v2_handwritten/models/log_probs.md."""

import torch

from tests.worked import agrees
from v2_handwritten.models.log_probs import completion_log_probs, selected_log_probs
from v2_handwritten.models.transformer import ModelConfig, Transformer

PAGE = "v2_handwritten/models/log_probs.md"

WHO, ASSISTANT, MIA, END = range(4)
# The logits of the next token (columns) after each token (rows).
LOGITS = torch.tensor([[0.0, 3, 0, 0], [0, 0, 2, 1], [1, 0, 0, 3], [2, 0, 0, 0]])
IDS = torch.tensor([[WHO, ASSISTANT, MIA, END]])
COMPLETION_MASK = torch.tensor([[0, 0, 1, 1]])


def model_of(logits: torch.Tensor) -> Transformer:
    """A Llama whose only layer adds nothing, so that the logits depend on the last token alone: a row of this table."""
    V = len(logits)
    config = ModelConfig(
        vocab_size=V, hidden_size=V, num_hidden_layers=1, num_attention_heads=1, rms_norm_eps=0.0,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(V))
        model.model.norm.weight.fill_(V**-0.5)  # the norm of a row with a single 1 is that row
        model.lm_head.weight.copy_(logits.T)
    return model


def test_logits_and_log_softmax_one_place_before_the_token() -> None:
    model = model_of(LOGITS)
    logits = model(IDS)[0]
    agrees(PAGE, "logits after", logits.detach())
    every = torch.stack([selected_log_probs(logits, torch.full((4,), token)) for token in range(4)], dim=1)
    agrees(PAGE, "log p after", every.detach())


def test_columns_of_the_completion_and_their_sum() -> None:
    model = model_of(LOGITS)
    rows = [completion_log_probs(model, IDS, COMPLETION_MASK, temperature=t)[0].detach() for t in (1.0, 0.5)]
    agrees(PAGE, "completion_log_probs", [[*row, row.sum()] for row in rows])


def test_the_gradient_of_a_log_probability() -> None:
    logits = LOGITS[ASSISTANT].clone().requires_grad_()
    selected_log_probs(logits, torch.tensor(MIA)).backward()
    agrees(PAGE, "gradient", [logits.detach().softmax(0).tolist(), logits.grad.tolist()])  # type: ignore[union-attr]


def test_the_temperature_divides_the_logits_and_not_the_log_probabilities() -> None:
    z, tokens = LOGITS[ASSISTANT].repeat(4, 1), torch.arange(4)
    tempered, scaled = selected_log_probs(z, tokens, 0.5).exp(), (selected_log_probs(z, tokens) / 0.5).exp()
    agrees(PAGE, "at τ = 0.5", [[*row, row.sum()] for row in (tempered, scaled)])
