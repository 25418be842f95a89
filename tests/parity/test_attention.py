"""Level 2 and the library: causal attention with shared key-value heads and masks, and the modules of both families."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention
from transformers.models.llama.modeling_llama import LlamaAttention as LibraryLlamaAttention

from shared_data.model_files.rope import rotary_frequencies
from tests.parity.arrays import array
from tests.parity.block_checks import compare_functions, compare_modules, each_kernel, randomise
from tests.parity.model_cases import config_of, library_config, packed
from tests.parity.recorder import ParityRecorder
from v2_handwritten.kernels import kernel
from v2_handwritten.models.blocks.attention import (
    Gpt2Attention,
    LlamaAttention,
    SharedInputs,
    causal_attention,
)
from v2_handwritten.models.blocks.attention_mask import AttentionMask
from v2_handwritten.models.blocks.rope import rotary_tables
from v2_handwritten.models.packing import Packing

T = 150  # two tiles of the fused kernel, the second one not full


def qkv(H: int, K: int, T: int = T, S: int = T, D: int = 8) -> dict[str, Tensor]:
    """Random queries, keys and values, strided as a projection leaves them."""
    shapes = {"q": (2, T, H, D), "k": (2, S, K, D), "v": (2, S, K, D)}
    return {
        name: torch.from_numpy(array(i, *shape)).transpose(1, 2)
        for i, (name, shape) in enumerate(shapes.items())
    }


def mask_of(kind: str) -> AttentionMask:
    """Plain causal, packed documents (one longer than a tile), texts that share a prefix, left padding."""
    if kind == "documents":
        return AttentionMask(T, T, packing=packed([[5, 1, 4, 140], [149, 1]])["packing"])
    if kind == "branches":
        places = torch.arange(T).expand(2, T)  # texts of 70: a prefix of 25, a branch of 25, one of 20
        return AttentionMask(T, T, packing=Packing(places // 70, places % 70 // 25))
    keep = torch.ones(2, T, dtype=torch.int64)
    keep[1, :20] = 0
    return AttentionMask(T, T, attention_mask=keep if kind == "padding" else None)


def library_attention(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> Tensor:
    """torch's function under the same mask."""
    return scaled_dot_product_attention(q, k, v, mask.additive(q.dtype)[:, None], enable_gqa=True)


@pytest.mark.parametrize("kind", ["causal", "documents", "branches", "padding"])
@pytest.mark.parametrize(("H", "K"), [(4, 4), (4, 2), (4, 1)], ids=["MHA", "GQA", "MQA"])
@each_kernel
def test_attention_and_its_gradients_equal_the_library(
    parity: ParityRecorder, H: int, K: int, kind: str, kernels: str
) -> None:
    # A query that sees no key has no right answer.
    real = slice(20 if kind == "padding" else 0, None)
    compare_functions(
        parity,
        f"attention, {kernels}, {H} heads on {K}, {kind}",
        lambda **arrays: kernel(kernels, causal_attention)(**arrays, mask=mask_of(kind))[:, :, real],
        lambda **arrays: library_attention(**arrays, mask=mask_of(kind))[:, :, real],
        qkv(H, K),
        5e-15,
    )


def test_masks_are_zero_exactly_where_a_query_may_look() -> None:
    assert AttentionMask(2, 4).allowed()[0].tolist() == [[True, True, True, False], [True] * 4]
    packing = Packing(torch.tensor([[0, 0, 0, 0, 1]]), torch.tensor([[0, 1, 1, 2, 0]]))
    mask = AttentionMask(5, 5, packing=packing)
    assert mask.allowed()[0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [0, 0, 0, 0, 1],
    ]
    assert torch.equal(mask.additive() == 0, mask.allowed())
    padded = AttentionMask(2, 3, attention_mask=torch.tensor([[0, 1, 1]]))
    assert padded.allowed()[0].int().tolist() == [[0, 1, 0], [0, 1, 1]]


@each_kernel
def test_queries_that_follow_cached_keys_see_all_of_them_and_their_own_past(kernels: str) -> None:
    arrays, attend = qkv(4, 2), kernel(kernels, causal_attention)
    whole = attend(**arrays)
    for new in (1, 7, 70):
        last = attend(arrays["q"][:, :, -new:], arrays["k"], arrays["v"])
        torch.testing.assert_close(last, whole[:, :, -new:], rtol=0, atol=1e-14)


@each_kernel
def test_a_row_without_any_key_is_finite(kernels: str) -> None:
    mask = AttentionMask(4, 4, attention_mask=torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]))
    assert kernel(kernels, causal_attention)(**qkv(2, 2, T=4, S=4), mask=mask).isfinite().all()


@each_kernel
def test_no_gradient_flows_from_a_query_to_a_later_key_or_another_document(kernels: str) -> None:
    """The exercise of attention.md."""
    arrays = {name: x.clone().requires_grad_() for name, x in qkv(2, 1, T=9, S=9).items()}
    mask = AttentionMask(9, 9, packing=packed([[4, 5], [9]])["packing"])
    output = kernel(kernels, causal_attention)(**arrays, mask=mask)
    output[0, :, 6].sum().backward()  # a query of the second document of row 0
    for name in ("k", "v"):
        gradient = arrays[name].grad
        assert gradient is not None
        touched = gradient.abs().sum((1, 3)) > 0
        assert touched[0].tolist() == [False] * 4 + [True] * 3 + [False] * 2
        assert not touched[1].any()


@pytest.mark.parametrize("case", ["gpt2", "llama MHA, untied", "llama GQA", "llama MQA, biases, D > C/H"])
@each_kernel
def test_the_attention_module_and_all_its_gradients_equal_the_library(
    parity: ParityRecorder, case: str, kernels: str
) -> None:
    config = config_of(case)
    settings = library_config(config)
    settings._attn_implementation = "sdpa"
    tables = rotary_tables(rotary_frequencies(config), torch.arange(T).unsqueeze(0), torch.float64)
    theirs: torch.nn.Module
    if config.model_type == "gpt2":
        ours: torch.nn.Module = Gpt2Attention(config, 0)
        theirs, arguments = GPT2Attention(settings, layer_idx=0), {}
    else:
        ours, theirs = LlamaAttention(config, 0), LibraryLlamaAttention(settings, layer_idx=0)
        wide = tuple(torch.cat([table, table], -1) for table in tables)
        arguments = {"position_embeddings": wide, "attention_mask": None}
    ours.kernels = kernels
    compare_modules(
        parity,
        f"attention module, {kernels}, {case}",
        ours.double(),
        randomise(theirs.eval()),
        torch.from_numpy(array(7, 2, T, config.hidden_size)),
        2e-14,
        our_arguments=[SharedInputs(AttentionMask(T, T), rotary=tables)],
        their_arguments=arguments,
    )


@each_kernel
def test_an_adapter_in_place_of_a_projection_is_called(kernels: str) -> None:
    config = config_of("llama GQA")
    module = LlamaAttention(config, 0)
    module.kernels = kernels
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    rotary = rotary_tables(rotary_frequencies(config), torch.arange(5).unsqueeze(0))
    shared = SharedInputs(AttentionMask(5, 5), rotary)
    x = torch.randn(1, 5, config.hidden_size)
    expected = module(x, shared)
    calls = []

    class Adapter(torch.nn.Module):
        def __init__(self, base: torch.nn.Module) -> None:
            super().__init__()
            self.base = base

        def forward(self, x: Tensor) -> Tensor:
            calls.append(x.shape)
            return self.base(x)

    module.v_proj = Adapter(module.v_proj)
    torch.testing.assert_close(module(x, shared), expected)
    assert calls == [x.shape]
