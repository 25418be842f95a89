"""Levels 1 and 2: causal attention with shared key-value heads and masks; the modules of both families; the three kernels."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.parity.arrays import array
from tests.parity.block_checks import compare_functions, compare_modules, randomise
from tests.parity.model_cases import config_of, packed
from tests.parity.recorder import ParityRecorder
from v1_quick.models.blocks import attention as library
from v1_quick.models.blocks.rope import rotary_tables as library_tables
from v1_quick.models.config import ModelConfig as LibraryConfig
from v2_handwritten.models.blocks import attention
from v2_handwritten.models.blocks.attention import (
    Gpt2Attention,
    LlamaAttention,
    SharedInputs,
    _attend,
    causal_attention,
    causal_mask,
    document_mask,
    padding_mask,
    plain_causal_attention,
)
from v2_handwritten.models.blocks.rope import rotary_frequencies, rotary_tables

T = 150  # two tiles of the fused kernel, the second one not full


def qkv(H: int, K: int, T: int = T, S: int = T, D: int = 8) -> dict[str, Tensor]:
    """Random queries, keys and values, strided as a projection leaves them."""
    shapes = {"q": (2, T, H, D), "k": (2, S, K, D), "v": (2, S, K, D)}
    return {
        name: torch.from_numpy(array(i, *shape)).transpose(1, 2)
        for i, (name, shape) in enumerate(shapes.items())
    }


def masks() -> dict[str, Tensor | None]:
    """No mask, two packed rows, left padding."""
    keep = torch.ones(2, T, dtype=torch.int64)
    keep[1, :20] = 0
    return {
        "causal": None,
        "documents": document_mask(packed([[70, 80], [1, 149]])["document_ids"], torch.float64),
        "padding": padding_mask(keep, T, torch.float64),
    }


@pytest.mark.parametrize("mask_name", ["causal", "documents", "padding"])
@pytest.mark.parametrize(("H", "K"), [(4, 4), (4, 2), (4, 1)], ids=["MHA", "GQA", "MQA"])
@pytest.mark.parametrize("kernel", ["fused", "fused, recomputed", "plain", "library"])
def test_every_kernel_equals_the_library_in_output_and_gradients(
    parity: ParityRecorder, monkeypatch: pytest.MonkeyPatch, H: int, K: int, mask_name: str, kernel: str
) -> None:
    mask = masks()[mask_name]
    inputs = qkv(H, K)
    if kernel == "fused, recomputed":
        monkeypatch.setattr(attention, "_KEEP_WEIGHTS", 0)
    kernels: dict[str, Callable[..., Tensor]] = {
        "plain": plain_causal_attention,
        "library": lambda q, k, v, mask: causal_attention(q, k, v, mask, kernel="library"),
    }
    ours = kernels.get(kernel, causal_attention)
    real = (
        slice(20, None) if mask_name == "padding" else slice(None)
    )  # a query that sees no key has no right answer
    compare_functions(
        parity,
        f"attention, {kernel}, {H} heads on {K}, {mask_name}",
        lambda **arrays: ours(**arrays, mask=mask)[:, :, real],
        lambda **arrays: library.causal_attention(**arrays, mask=mask)[:, :, real],
        inputs,
        5e-15,
    )


@pytest.mark.parametrize(("H", "K"), [(4, 4), (4, 2), (4, 1)], ids=["MHA", "GQA", "MQA"])
@pytest.mark.parametrize("kernel", ["handwritten", "library"])
def test_packed_documents_attend_as_the_library_does_under_their_mask(
    parity: ParityRecorder, H: int, K: int, kernel: str
) -> None:
    """The fused kernel is told where documents end instead of a mask; one document is longer than a tile."""
    documents = packed([[5, 1, 4, 140], [149, 1]])["document_ids"]
    mask = document_mask(documents, torch.float64)
    compare_functions(
        parity,
        f"attention of documents, {kernel}, {H} heads on {K}",
        lambda q, k, v: _attend(q, k, v, 0.0, SharedInputs(document_ids=documents, kernel=kernel)),
        lambda q, k, v: library.causal_attention(q, k, v, mask=mask).transpose(1, 2).flatten(2),
        qkv(H, K),
        5e-15,
    )


@pytest.mark.parametrize("masked", ["causal", "documents", "branches", "padding"])
@pytest.mark.parametrize(("H", "K"), [(4, 4), (4, 2)], ids=["MHA", "GQA"])
@pytest.mark.parametrize("kernel", ["handwritten", "library"])
def test_positions_that_are_read_find_what_they_find_among_all(
    parity: ParityRecorder, H: int, K: int, kernel: str, masked: str
) -> None:
    """Some tiles are read whole, some in part, some not at all; one row has fewer than the other."""
    read = torch.arange(2 * T).view(2, T) % 3 == 0
    read[0, :130], read[1, :20], read[1, 128:] = False, False, True
    shared: dict[str, Any] = {"mask": masks()[masked]} if masked in ("causal", "padding") else {}
    if masked == "documents":
        shared = {"document_ids": packed([[5, 1, 4, 140], [149, 1]])["document_ids"]}
    if masked == "branches":
        places = torch.arange(T).expand(2, T)  # texts of 70: a trunk of 25, a branch of 25, one of 20
        shared = {"document_ids": places // 70, "branch_ids": places % 70 // 25}
    mask = shared["mask"] if "mask" in shared else document_mask(**shared, dtype=torch.float64)
    compare_functions(
        parity,
        f"attention of read positions, {kernel}, {H} heads on {K}, {masked}",
        lambda q, k, v: _attend(q, k, v, 0.0, SharedInputs(kernel=kernel, **shared), read),
        lambda q, k, v: library.causal_attention(q, k, v, mask=mask).transpose(1, 2).flatten(2)[read],
        qkv(H, K),
        5e-15,
    )


def test_nothing_is_computed_for_what_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = []
    original = attention._exponentials

    def counted(queries: Tensor, k: Tensor, tile: Any) -> tuple[Tensor, Tensor]:
        E, inverse_sum = original(queries, k, tile)
        scores.append(E.numel())
        return E, inverse_sum

    monkeypatch.setattr(attention, "_exponentials", counted)
    read = torch.zeros(2, T, dtype=torch.bool)
    for expected in (0, 4 * 128):  # of four heads: one query, and the keys of its tile
        scores.clear()
        found = _attend(**qkv(4, 2), dropout_probability=0.0, shared=SharedInputs(), read=read)
        assert found.shape == (read.sum(), 4 * 8)
        assert sum(scores) == expected
        read[1, 3] = True


def test_queries_that_follow_cached_keys_see_all_of_them_and_their_own_past() -> None:
    arrays = qkv(4, 2)
    whole = causal_attention(**arrays)
    for new in (1, 7, 70):
        last = causal_attention(arrays["q"][:, :, -new:], arrays["k"], arrays["v"])
        torch.testing.assert_close(last, whole[:, :, -new:], rtol=0, atol=1e-14)
        library_last = causal_attention(arrays["q"][:, :, -new:], arrays["k"], arrays["v"], kernel="library")
        torch.testing.assert_close(
            library_last, whole[:, :, -new:], rtol=0, atol=1e-6
        )  # a float32 mask inside


def test_the_incoming_gradient_is_left_alone() -> None:
    arrays = {
        name: x[:1].clone().requires_grad_() for name, x in qkv(1, 1).items()
    }  # one head: all reshapes are views
    direction = torch.from_numpy(array(9, 1, 1, T, 8))
    before = direction.clone()
    causal_attention(**arrays).backward(direction)
    assert torch.equal(direction, before)


def test_a_row_without_any_key_is_finite() -> None:
    arrays = qkv(2, 2, T=4, S=4)
    keep = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    for function in (causal_attention, plain_causal_attention):
        assert function(**arrays, mask=padding_mask(keep, 4, torch.float64)).isfinite().all()


def test_no_gradient_flows_from_a_query_to_a_later_key_or_another_document() -> None:
    """The exercise of attention.md."""
    arrays = {name: x.clone().requires_grad_() for name, x in qkv(2, 1, T=9, S=9).items()}
    mask = document_mask(packed([[4, 5], [9]])["document_ids"], torch.float64)
    causal_attention(**arrays, mask=mask)[0, :, 6].sum().backward()  # a query of the second document of row 0
    for name in ("k", "v"):
        gradient = arrays[name].grad
        assert gradient is not None
        touched = gradient.abs().sum((1, 3)) > 0
        assert touched[0].tolist() == [False] * 4 + [True] * 3 + [False] * 2
        assert not touched[1].any()


def test_masks_are_zero_exactly_where_a_query_may_look() -> None:
    assert (causal_mask(2, 4)[0] == 0).tolist() == [[True, True, True, False], [True] * 4]
    assert (document_mask(torch.tensor([[0, 0, 1]]))[0] == 0).int().tolist() == [
        [1, 0, 0],
        [1, 1, 0],
        [0, 0, 1],
    ]
    assert (padding_mask(torch.tensor([[0, 1, 1]]), 2)[0] == 0).int().tolist() == [[0, 1, 0], [0, 1, 1]]


@pytest.mark.parametrize("case", ["gpt2", "llama MHA, untied", "llama GQA", "llama MQA, biases, D > C/H"])
def test_the_attention_module_and_all_its_gradients_equal_the_library(
    parity: ParityRecorder, case: str
) -> None:
    config = config_of(case)
    settings = LibraryConfig.from_hf(config.to_hf())
    settings._attn_implementation = "sdpa"
    positions = torch.arange(T).unsqueeze(0)
    tables = rotary_tables(rotary_frequencies(config), positions, torch.float64)
    angles = torch.from_numpy(rotary_frequencies(config))
    theirs: torch.nn.Module
    if config.model_type == "gpt2":
        ours: torch.nn.Module = Gpt2Attention(config, 0)
        theirs, arguments = library.Gpt2Attention(settings, layer_idx=0), {}
    else:
        ours, theirs = LlamaAttention(config, 0), library.LlamaAttention(settings, layer_idx=0)
        wide = tuple(torch.cat([table, table], -1) for table in tables)
        arguments = {"position_embeddings": wide, "attention_mask": None}
        assert library_tables(angles.float(), positions)[0].shape == wide[0].shape
    compare_modules(
        parity,
        f"attention module, {case}",
        ours.double(),
        randomise(theirs.eval()),
        torch.from_numpy(array(7, 2, T, config.hidden_size)),
        2e-14,
        our_arguments=[SharedInputs(rotary=tables)],
        their_arguments=arguments,
    )


def test_an_adapter_in_place_of_a_projection_is_called() -> None:
    config = config_of("llama GQA")
    module = LlamaAttention(config, 0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    shared = SharedInputs(rotary=rotary_tables(rotary_frequencies(config), torch.arange(5).unsqueeze(0)))
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
