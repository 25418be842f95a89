"""Every fused and library kernel gives what the plain formula gives: outputs and gradients, in float32 and float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from shared_data.errors import UserError
from shared_data.model_files.config import ModelConfig
from tests.parity.arrays import array, integers
from v2_handwritten.kernels import kernel
from v2_handwritten.kernels.fused import (
    attention,
    cross_entropy,
    feed_forward,
    gathered_attention,
    log_probs,
    sparse_indexer,
)
from v2_handwritten.models.blocks.attention import causal_attention
from v2_handwritten.models.blocks.attention_mask import AttentionMask
from v2_handwritten.models.blocks.cross_entropy import linear_cross_entropy
from v2_handwritten.models.blocks.embeddings import embed
from v2_handwritten.models.blocks.feed_forward import gelu_new, swiglu
from v2_handwritten.models.blocks.linear import Linear, merged_linear
from v2_handwritten.models.blocks.mixture_of_experts import expert_mixture
from v2_handwritten.models.blocks.normalization import layer_norm, rms_norm
from v2_handwritten.models.blocks.rope import apply_rotary
from v2_handwritten.models.blocks.selected_attention import selected_attention
from v2_handwritten.models.blocks.sparse_indexer import attention_kl, select_keys
from v2_handwritten.models.log_probs import linear_log_probs, selected_log_probs
from v2_handwritten.models.packing import Packing
from v2_handwritten.models.transformer import Transformer

B, T, C, V = 2, 150, 6, 11  # T is two tiles of the fused attention, the second one not full
ATTENTION = [(B, 4, T, 8), (B, 2, T, 8), (B, 2, T, 8)]
INDEX = [(B, T, 3, 4), (B, T, 4), (B, T, 3)]
PLACES = torch.arange(T).expand(B, T)
TARGETS = torch.from_numpy(integers(1, V, 9))
ANGLES = torch.from_numpy(array(5, B, T, 4))
LAYERS = [Linear(C, 3), Linear(C, 5)]
EXPERTS = torch.arange(40)[:, None] % 3 + torch.tensor([0, 2])  # of 6, the last of which nobody chose


def masked(**options: Any) -> Callable[..., Tensor]:
    """Attention under a mask made of these."""

    def attend(function: Callable, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = AttentionMask(q.shape[2], k.shape[2], **options)
        return function(q, k, v, mask)

    return attend


def attention_of_some(function: Callable, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Some tiles are wanted whole, some in part, some not at all."""
    wanted = torch.arange(B * T).view(B, T) % 3 == 0
    wanted[0, :130], wanted[1, :20], wanted[1, 128:] = False, False, True
    mask = AttentionMask(T, T, packing=Packing(PLACES // 70, PLACES % 70 // 25))
    return function(q, k, v, mask.only(wanted)).transpose(1, 2)[wanted]


def with_layers(function: Callable, x: Tensor) -> Tensor:
    for number, layer in enumerate(LAYERS):
        for parameter in layer.to(x.dtype).parameters():
            parameter.data = torch.from_numpy(array(number, *parameter.shape)).to(x.dtype)
    return function(x, LAYERS)


def cross_entropy_of_some(function: Callable, hidden: Tensor, weight: Tensor) -> Tensor:
    targets = TARGETS.clone()
    targets[[0, 4]] = -100
    return function(hidden, weight, targets)


def selected_keys(mask: AttentionMask) -> Tensor:
    """Seven keys that each query may see, or fewer where it sees fewer."""
    return select_keys(torch.from_numpy(array(7, B, T, T)), mask.allowed(), 7)


def with_selection(function: Callable, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries of documents; of the second row, only some are wanted."""
    mask = AttentionMask(T, T, packing=Packing(PLACES // 70, PLACES % 70 // 25))
    wanted = (PLACES % 3 == 0) | (torch.arange(B).unsqueeze(1) == 0)
    return function(q, k, v, selected_keys(mask), mask.only(wanted)).transpose(1, 2)[wanted]


def indexer_learns(sparse: bool, **options: Any) -> Callable[..., Tensor]:
    """The loss of an indexer beside an attention of four heads."""

    def loss(function: Callable, queries: Tensor, keys: Tensor, weights: Tensor) -> Tensor:
        mask = AttentionMask(T, T, **options)
        q, k = (torch.from_numpy(array(i, *shape)).to(queries) for i, shape in enumerate(ATTENTION[:2]))
        return function(queries, keys, weights, q, k, selected_keys(mask) if sparse else None, mask)

    return loss


# Name → (plain function, how it is called, shapes of its inputs).
CASES: dict[str, tuple[Callable, Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "attention": (causal_attention, lambda f, *qkv: f(*qkv), ATTENTION),
    "attention after a cache": (causal_attention, lambda f, *qkv: f(*qkv), [(B, 4, 7, 8), *ATTENTION[1:]]),
    "attention, documents": (causal_attention, masked(packing=Packing(PLACES // 140)), ATTENTION),
    "attention, branches": (
        causal_attention,
        masked(packing=Packing(PLACES // 70, PLACES % 70 // 25)),
        ATTENTION,
    ),
    "attention, padding": (causal_attention, masked(attention_mask=PLACES < 149), ATTENTION),
    "attention of some queries": (causal_attention, attention_of_some, ATTENTION),
    "selected_attention": (selected_attention, with_selection, ATTENTION),
    "selected_attention, one head of latents": (
        selected_attention,
        with_selection,
        [(B, 4, T, 8), (B, 1, T, 8), (B, 1, T, 5)],
    ),
    "attention_kl": (attention_kl, indexer_learns(False, packing=Packing(PLACES // 70)), INDEX),
    "attention_kl, padding": (attention_kl, indexer_learns(False, attention_mask=PLACES > 9), INDEX),
    "attention_kl of selected keys": (attention_kl, indexer_learns(True, attention_mask=PLACES > 9), INDEX),
    "linear_cross_entropy": (linear_cross_entropy, cross_entropy_of_some, [(9, C), (V, C)]),
    "selected_log_probs": (selected_log_probs, lambda f, z: f(z, TARGETS, 0.7), [(9, V)]),
    "linear_log_probs": (linear_log_probs, lambda f, h, w: f(h, w, TARGETS, 0.7), [(9, C), (V, C)]),
    "layer_norm": (layer_norm, lambda f, x, w, b: f(x, w, b, 1e-5), [(3, 5, C), (C,), (C,)]),
    "rms_norm": (rms_norm, lambda f, x, w: f(x, w, 1e-5), [(3, 5, C), (C,)]),
    "gelu_new": (gelu_new, lambda f, x: f(3 * x), [(3, 7, C)]),
    "swiglu": (swiglu, lambda f, x: f(3 * x), [(3, 7, 2 * C)]),
    "apply_rotary": (apply_rotary, lambda f, x: f(x, ANGLES.cos().to(x), ANGLES.sin().to(x)), [(B, 3, T, 8)]),
    "embed": (embed, lambda f, w: f(w, TARGETS.view(3, 3)), [(V, C)]),
    "merged_linear": (merged_linear, with_layers, [(3, 7, C)]),
    "expert_mixture": (
        expert_mixture,
        lambda f, x, w, *matrices: f(x, w, EXPERTS, *matrices),
        [(40, C), (40, 2), (6, 2 * 7, C), (6, C, 7)],
    ),
}
# Two rows of logits, one of activations, no attention weights kept.
SMALL_CHUNKS = [
    (cross_entropy, "_CHUNK_ELEMENTS", 2 * V),
    (log_probs, "_CHUNK_ELEMENTS", 2 * V),
    (feed_forward, "_CHUNK_ELEMENTS", 1),
    (attention, "_KEEP_WEIGHTS", 0),
    (gathered_attention, "_TILE_ELEMENTS", 2000),
    (sparse_indexer, "_TILE_SCORES", 2**15),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("choice", ["fused", "fused, small chunks", "library"])
@pytest.mark.parametrize("case", CASES)
def test_every_kernel_equals_its_plain_twin_in_output_and_gradients(
    monkeypatch: pytest.MonkeyPatch, case: str, choice: str, dtype: torch.dtype
) -> None:
    plain, call, shapes = CASES[case]
    if choice == "fused, small chunks":
        for module, name, value in SMALL_CHUNKS:
            monkeypatch.setattr(module, name, value)
    results = []
    for function in (kernel(choice.partition(",")[0], plain), plain):
        inputs = [torch.from_numpy(array(i, *shape)).to(dtype) for i, shape in enumerate(shapes)]
        inputs = [x.requires_grad_() for x in inputs]
        output = call(function, *inputs)
        direction = torch.as_tensor(array(9, *output.shape), dtype=dtype)
        before = direction.clone()
        output.backward(direction)
        assert torch.equal(direction, before), "the incoming gradient was written to"
        results.append([output.detach(), *(x.grad for x in inputs)])
    for actual, expected in zip(*results, strict=True):
        error = (actual - expected).abs().max() / expected.abs().max().clamp(min=1)
        assert actual.dtype == dtype
        assert error < (2e-6 if dtype == torch.float32 else 3e-15)


@pytest.mark.parametrize("choice", ["plain", "fused", "library"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_attention_in_16_bits_is_close_to_that_in_32(choice: str, dtype: torch.dtype) -> None:
    """Under a mask of documents: -1e30 is no number of float16."""
    mask = AttentionMask(T, T, packing=Packing(PLACES // 70))
    inputs = [torch.from_numpy(array(number, *shape)).to(dtype) for number, shape in enumerate(ATTENTION)]
    found = kernel(choice, causal_attention)(*inputs, mask)
    assert found.dtype == dtype
    expected = causal_attention(*(x.float() for x in inputs), mask)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_the_choice_of_kernels_reaches_every_block_and_an_unknown_one_is_refused() -> None:
    config = ModelConfig(model_type="gpt2", hidden_size=32)
    for choice in ("plain", "fused", "library"):
        model = Transformer(config, kernels=choice)
        assert model.kernels == choice
        blocks = {type(m).__name__: m.kernels for m in model.modules() if hasattr(m, "kernels")}
        assert set(blocks.values()) == {choice}
        assert len(blocks) == 6  # the model, two embeddings, a norm, attention, a feed-forward layer
    model.kernels = "plain"
    assert model.transformer.h[0].attn.kernels == "plain"
    with pytest.raises(UserError, match="no kernels 'fast'; choose one of plain, fused, library"):
        Transformer(config, kernels="fast")


def test_nothing_is_computed_for_queries_that_nobody_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = []
    original = attention._exponentials

    def counted(queries: Tensor, k: Tensor, tile: Any) -> tuple[Tensor, Tensor]:
        E, inverse_sum = original(queries, k, tile)
        scores.append(E.numel())
        return E, inverse_sum

    monkeypatch.setattr(attention, "_exponentials", counted)
    q, k, v = (torch.from_numpy(array(i, *shape)) for i, shape in enumerate(ATTENTION))
    wanted = torch.zeros(B, T, dtype=torch.bool)
    for expected in (0, 4 * 128):  # of four heads: one query, and the keys of its tile
        scores.clear()
        attention.causal_attention(q, k, v, AttentionMask(T, T).only(wanted))
        assert sum(scores) == expected
        wanted[1, 3] = True


def test_the_fused_kernels_never_hold_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """With chunks of two rows, nothing of N x V elements is kept for the backward pass."""
    monkeypatch.setattr(cross_entropy, "_CHUNK_ELEMENTS", 2 * V)
    monkeypatch.setattr(log_probs, "_CHUNK_ELEMENTS", 2 * V)
    hidden, weight = (torch.from_numpy(array(i, n, C)).requires_grad_() for i, n in enumerate((9, V)))
    sizes: list[int] = []

    def pack(x: Tensor) -> Tensor:
        sizes.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        for function in (linear_cross_entropy, linear_log_probs):
            kernel("fused", function)(hidden, weight, TARGETS)
    assert max(sizes) < 9 * V


def test_an_evaluation_computes_no_gradient() -> None:
    """Under `no_grad`, the loss is one product a chunk: none with the gradient of the logits."""
    hidden, weight = (torch.from_numpy(array(number, rows, C)) for number, rows in enumerate((9, V)))
    products: list[Any] = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            products.extend([function] if "mm" in function.name() else [])
            return function(*args, **(kwargs or {}))

    for grad, wanted in ((True, 3), (False, 1)):
        products.clear()
        with torch.set_grad_enabled(grad), Count():
            cross_entropy.linear_cross_entropy(hidden.requires_grad_(), weight.requires_grad_(), TARGETS)
        assert len(products) == wanted
