"""What level 2's models promise by themselves: derivatives against differences, dropout, caches, limits, no library layers."""

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

import v2_handwritten
from shared_data.errors import UserError
from shared_data.model_files.config import ModelConfig
from v2_handwritten.kernels import fused, kernel
from v2_handwritten.models.blocks.dropout import dropout
from v2_handwritten.models.blocks.linear import Linear, merged_linear
from v2_handwritten.models.checkpoint import load_weights, save_model
from v2_handwritten.models.reward_model import RewardModel
from v2_handwritten.models.transformer import Transformer

SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def model(**changes: object) -> Transformer:
    """A small Llama, or with changes another model."""
    return Transformer(ModelConfig(**(SMALL | {"num_key_value_heads": 2} | changes))).initialize(0)


def tokens(B: int = 2, T: int = 12) -> Tensor:
    """Random token ids."""
    return torch.randint(50, (B, T), generator=torch.Generator().manual_seed(0))


def random(*shape: int) -> Tensor:
    """Float64 numbers that need a gradient."""
    return torch.randn(
        *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape))
    ).requires_grad_()


def test_handwritten_derivatives_equal_finite_differences() -> None:
    C = 4
    angles = torch.rand(1, 3, 2, dtype=torch.float64)
    functions = {
        "rms_norm": (lambda x, w: fused.rms_norm(x, w, 1e-5), (random(3, C), random(C))),
        "layer_norm": (lambda x, w, b: fused.layer_norm(x, w, b, 1e-5), (random(3, C), random(C), random(C))),
        "gelu_new": (fused.gelu_new, (random(3, C),)),
        "swiglu": (fused.swiglu, (random(3, 2 * C),)),
        "rope": (lambda x: fused.apply_rotary(x, angles.cos(), angles.sin()), (random(1, 2, 3, 4),)),
        "embed": (lambda w: fused.embed(w, torch.tensor([[1, 0, 1]])), (random(3, C),)),
        "attention": (fused.causal_attention, (random(1, 2, 3, 2), random(1, 1, 5, 2), random(1, 1, 5, 2))),
        "loss": (
            lambda h, w: fused.linear_cross_entropy(h, w, torch.tensor([1, -100, 4])),
            (random(3, C), random(6, C)),
        ),
        "log-probabilities": (
            lambda h, w: fused.linear_log_probs(h, w, torch.tensor([1, 0, 4]), 0.7),
            (random(3, C), random(6, C)),
        ),
    }
    for name, (function, inputs) in functions.items():
        assert torch.autograd.gradcheck(function, inputs), name


class GrowingCache:
    """The simplest cache: keys and values so far, concatenated."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.length = 0

    def update(self, layer_index: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if layer_index in self.layers:
            k, v = (torch.cat(pair, dim=2) for pair in zip(self.layers[layer_index], (k, v), strict=True))
        self.layers[layer_index] = (k, v)
        return k, v


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_logits_with_a_cache_equal_those_without(family: str) -> None:
    transformer = model(model_type=family, num_key_value_heads=2 if family == "llama" else 4).double()
    ids = tokens()
    with torch.no_grad():
        expected = transformer(ids)
        cache, pieces = GrowingCache(), []
        for start, stop in ((0, 5), (5, 6), (6, 12)):
            pieces.append(transformer(ids[:, start:stop], cache=cache))
            cache.length = stop
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, rtol=0, atol=1e-13)


def test_dropout_keeps_the_mean_and_draws_from_its_generator_only() -> None:
    x = torch.ones(100_000)
    before = torch.get_rng_state()
    y = dropout(x, 0.25, True, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert y.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert y.mean().item() == pytest.approx(1, abs=0.01)
    assert torch.equal(y, dropout(x, 0.25, True, torch.Generator().manual_seed(0)))
    assert dropout(x, 0.25, False) is x
    assert dropout(x, 0.0, True) is x


@pytest.mark.parametrize(
    "places",
    [{"embd_pdrop": 0.5}, {"attention_dropout": 0.5}, {"resid_pdrop": 0.5}],
    ids=["embeddings", "attention weights", "residual"],
)
def test_every_place_of_dropout_acts_in_training_only_and_resumes_from_the_saved_state(
    places: dict[str, float],
) -> None:
    transformer = model(model_type="gpt2", num_key_value_heads=4, **places)
    state = transformer.dropout_generator.get_state()
    first, second = transformer(tokens()), transformer(tokens())
    assert not torch.equal(first, second)
    transformer.dropout_generator.set_state(state)
    assert torch.equal(transformer(tokens()), first)
    transformer.eval()
    assert torch.equal(
        transformer(tokens()), model(model_type="gpt2", num_key_value_heads=4).eval()(tokens())
    )


def test_gradient_checkpointing_repeats_the_dropout_masks() -> None:
    def run(checkpointing: bool) -> tuple[list[Tensor], Tensor]:
        transformer = model(model_type="gpt2", num_key_value_heads=4, attention_dropout=0.3, resid_pdrop=0.3)
        transformer.gradient_checkpointing = checkpointing
        transformer.loss(tokens(), tokens()).backward()
        gradients = [p.grad for p in transformer.parameters() if p.grad is not None]
        return gradients, transformer.dropout_generator.get_state()

    (plain, state), (checkpointed, other_state) = run(False), run(True)
    assert torch.equal(state, other_state)  # the next step draws the same masks, too
    assert len(plain) == len(checkpointed)
    assert all(torch.equal(a, b) for a, b in zip(plain, checkpointed, strict=True))


def test_gradient_checkpointing_keeps_less_for_the_backward_pass() -> None:
    def kept(checkpointing: bool) -> int:
        transformer, sizes = model(num_hidden_layers=4), []
        transformer.gradient_checkpointing = checkpointing

        def pack(x: Tensor) -> Tensor:
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            transformer.loss(tokens(4, 64), tokens(4, 64))
        return sum(sizes)

    assert kept(True) < kept(False) / 5


def test_a_copy_of_a_model_is_independent_and_still_tied() -> None:
    transformer = model()
    other = copy.deepcopy(transformer)
    assert torch.equal(other(tokens()), transformer(tokens()))
    assert other.lm_head.weight is other.token_embedding.weight
    assert other.lm_head.weight is not transformer.lm_head.weight


def test_more_tokens_than_positions_is_a_user_error() -> None:
    with pytest.raises(UserError, match="65 tokens are more than the model's 64 positions"):
        model()(tokens(1, 65))


def test_no_gradient_is_computed_when_none_is_asked_for() -> None:
    transformer = model()
    with torch.no_grad():
        loss = transformer.loss(tokens(), tokens())
    assert not loss.requires_grad
    assert torch.equal(loss, transformer.loss(tokens(), tokens()).detach())


def test_a_training_loss_falls() -> None:
    transformer, ids = model(), tokens(4, 33)
    losses = []
    for _ in range(30):
        transformer.zero_grad()
        loss = transformer.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for parameter in transformer.parameters():
                parameter -= 0.5 * parameter.grad / parameter.grad.norm()
    assert losses[-1] < losses[0] - 0.5


def test_only_the_library_kernels_use_a_layer_or_function_of_the_library() -> None:
    forbidden = re.compile(
        r"nn\.(Linear|Embedding|LayerNorm|RMSNorm|Dropout)|functional(?!\.pad)|torch\.(softmax|optim|layer_norm)"
    )
    root = Path(v2_handwritten.__path__[0])
    found = set()
    for path in [*(root / "models").rglob("*.py"), *(root / "kernels").rglob("*.py")]:
        code = re.sub(r'""".*?"""', "", path.read_text(), flags=re.S)
        if forbidden.search(code):
            found.add(path.name)
    assert found == {"library.py"}


@pytest.mark.parametrize("kind", [Transformer, RewardModel])
def test_weights_of_a_folder_are_copied_into_a_model_in_place(kind: type, tmp_path: Path) -> None:
    source, target = model(), Transformer(ModelConfig(**SMALL | {"num_key_value_heads": 2})).initialize(1)
    if kind is RewardModel:
        source, target = (RewardModel.from_transformer(m, seed) for seed, m in enumerate((source, target)))
    save_model(source, tmp_path)
    parameters = list(target.parameters())
    load_weights(target, tmp_path)
    for (name, actual), before, expected in zip(
        target.named_parameters(), parameters, source.parameters(), strict=True
    ):
        assert actual is before, name  # an optimizer that holds the parameters goes on with them
        assert torch.equal(actual, expected), name


def test_frozen_embeddings_do_not_stop_gradients_under_gradient_checkpointing() -> None:
    transformer = model()
    transformer.gradient_checkpointing = True
    transformer.token_embedding.weight.requires_grad = False
    transformer.loss(tokens(), tokens()).backward()
    assert all((p.grad is not None) == p.requires_grad for p in transformer.parameters())


def test_an_adapter_around_a_layer_may_call_the_layer_itself() -> None:
    """The fused kernel calls what is not exactly `Linear`, and `Linear.forward` must not call the kernel again."""

    class Adapter(Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1

    layers = [Linear(4, 3), Adapter(4, 2)]
    for layer in layers:
        torch.nn.init.normal_(layer.weight)
    x = torch.ones(2, 4)
    expected = torch.cat([x @ layers[0].weight.T, x @ layers[1].weight.T + 1], dim=-1)
    torch.testing.assert_close(kernel("fused", merged_linear)(x, layers), expected)
