"""What `inspect` shows of a model, against transformers with `output_attentions` and `output_hidden_states`."""

import pytest
import torch

from shared_data.errors import UserError
from tests.parity.arrays import integers
from tests.parity.model_cases import CASES, pair
from tests.parity.recorder import ParityRecorder
from v2_handwritten import inspect
from v2_handwritten.models.transformer import ModelConfig, Transformer, new_model

# About ten times the largest measured errors. The library's Llama computes norms, softmax and rotary tables in float32 whatever
# the model's type.
TOLERANCES = {
    "gpt2 float32": {"log_probs": 3e-6, "attentions": 6e-6, "hidden_states": 5e-6},
    "gpt2 float64": {"log_probs": 4e-15, "attentions": 8e-15, "hidden_states": 8e-15},
    "llama float32": {"log_probs": 1e-5, "attentions": 1e-5, "hidden_states": 1.5e-5},
    "llama float64": {"log_probs": 1e-5, "attentions": 1.5e-5, "hidden_states": 1.5e-5},
}
IDS = integers(1, 96, 40).tolist()


def small_model(**settings: object) -> Transformer:
    return new_model(ModelConfig(vocab_size=96, hidden_size=16, num_hidden_layers=2, **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_predictions_attentions_and_hidden_states_equal_the_library(
    parity: ParityRecorder, case: str, dtype: torch.dtype
) -> None:
    ours, library = pair(case, dtype)
    library.library.set_attn_implementation("eager")
    inspection = inspect(ours, IDS)
    with torch.no_grad():
        output = library.library.eval()(
            torch.tensor([IDS]), output_attentions=True, output_hidden_states=True, use_cache=False
        )
    kind = f"{case.split()[0]} {str(dtype).removeprefix('torch.')}"
    for quantity, actual, expected in (
        ("log_probs", inspection.log_probs, output.logits[0].log_softmax(-1)),
        ("attentions", inspection.attentions, torch.cat(output.attentions)),
        ("hidden_states", inspection.hidden_states, torch.cat(output.hidden_states)),
    ):
        parity(
            component=f"inspect, {case}",
            quantity=quantity,
            levels="v2-v1",
            actual=actual,
            expected=expected,
            tolerance=TOLERANCES[kind][quantity],
        )


@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
def test_every_row_sums_to_one_and_nothing_is_read_from_the_future(case: str) -> None:
    """The exercise of inspection.md."""
    ours, _ = pair(case)
    attentions = inspect(ours, IDS).attentions
    torch.testing.assert_close(attentions.sum(-1), torch.ones(attentions.shape[:-1], dtype=torch.float64))
    assert not attentions.triu(1).any()
    assert (attentions >= 0).all()
    assert attentions[..., 0, 0].eq(1).all()  # the first token has nothing else to read


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_a_model_is_left_as_it_was(model_type: str) -> None:
    model = small_model(model_type=model_type, attention_dropout=0.5).train()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    inspection = inspect(model, IDS)
    assert model.training
    assert all(module.training for module in model.modules())
    assert model.kernels == "fused"
    assert {module.kernels for module in model.body.modules() if hasattr(module, "kernels")} == {"fused"}
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())
    assert not inspection.log_probs.requires_grad
    assert torch.equal(inspection.log_probs, inspect(model.eval(), IDS).log_probs), "no dropout"
    model.train()
    with pytest.raises(UserError, match="more than the model's"):
        inspect(model, [0] * (model.config.max_position_embeddings + 1))
    assert model.training
    assert model.kernels == "fused"
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_the_kernels_of_a_model_make_no_difference_to_what_is_seen(model_type: str) -> None:
    model = small_model(model_type=model_type)
    expected = inspect(model, IDS)
    for kernels in ("plain", "library"):
        model.kernels = kernels
        actual = inspect(model, IDS)
        for name in ("log_probs", "attentions", "hidden_states"):
            assert torch.equal(getattr(actual, name), getattr(expected, name))
    model.kernels = "plain"
    logits = model.eval()(torch.tensor([IDS]))[0]
    torch.testing.assert_close(expected.log_probs, logits.log_softmax(-1).detach())


def test_no_token_is_refused() -> None:
    with pytest.raises(UserError, match="there is no token to look at"):
        inspect(small_model(), [])
