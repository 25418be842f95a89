"""Sparse patterns, sinks and soft caps: both hand-written levels, plain and fused, against torch and transformers."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import Llama4TextConfig, MistralConfig
from transformers.masking_utils import create_chunked_causal_mask, create_sliding_window_causal_mask
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.gpt_oss import modeling_gpt_oss

from shared_data.attention.patterns import AttentionPattern
from tests.parity.arrays import array
from tests.parity.block_checks import compare_functions, each_kernel
from tests.parity.recorder import ParityRecorder
from v2_handwritten.kernels import kernel
from v2_handwritten.models.blocks import attention_mask as masks2
from v2_handwritten.models.blocks.attention import causal_attention
from v2_handwritten.models.packing import Packing as Packing2
from v3_numpy_deep.autograd import Tensor as Tensor3
from v3_numpy_deep.autograd.kernels import kernel as kernel3
from v3_numpy_deep.models.blocks import attention_mask as masks3
from v3_numpy_deep.models.blocks.attention import causal_attention as causal_attention3
from v3_numpy_deep.models.packing import Packing as Packing3

T, NEW = 150, 7  # more than a tile of queries at both levels; queries that follow a cache
WINDOW = AttentionPattern("sliding_attention", 12)
PATTERNS = {
    f"{kind}, {sinks} sinks": AttentionPattern(f"{kind}_attention", 12, sinks)
    for kind in ("full", "sliding", "chunked", "strided")
    for sinks in (0, 3)
    if kind != "full" or not sinks
}
LAYOUTS = ("causal", "documents", "branches", "padding", "decoding")
PLACES = np.tile(np.arange(T), (2, 1))
DOCUMENTS = np.stack([PLACES[0] // 70, (PLACES[0] >= 10) * 1])
BRANCHES = (PLACES // 70, PLACES % 70 // 25)  # texts of 70: a prefix of 25, a branch of 25, one of 20
REAL = (np.array([[0], [20]]) <= PLACES).astype(np.int64)  # 20 columns of padding on the left of row 1


def mask_of(layout: str, pattern: AttentionPattern, level: int = 2) -> Any:
    """The same mask at level 2 or 3."""
    constant: Any = torch.from_numpy if level == 2 else np.asarray
    masks, packing = (masks2, Packing2) if level == 2 else (masks3, Packing3)
    options: dict[str, Any] = {}
    if layout == "documents":
        options["packing"] = packing(constant(DOCUMENTS))
    elif layout == "branches":
        options["packing"] = packing(*map(constant, BRANCHES))
    elif layout == "padding":
        options["attention_mask"] = constant(REAL)
    return masks.AttentionMask(NEW if layout == "decoding" else T, T, **options).of(pattern)


def inputs(H: int, K: int, layout: str, Dv: int = 8) -> dict[str, np.ndarray]:
    new = NEW if layout == "decoding" else T
    return {"q": array(0, 2, H, new, 8), "k": array(1, 2, K, T, 8), "v": array(2, 2, K, T, Dv)}


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(values) for name, values in arrays.items()}


def real_queries(layout: str) -> slice:
    """A query that sees no key has no right answer."""
    return slice(20 if layout == "padding" else 0, None)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize(("H", "K"), [(4, 4), (4, 2)], ids=["MHA", "GQA"])
@each_kernel
def test_a_pattern_equals_torch_under_the_same_boolean_mask(
    parity: ParityRecorder, H: int, K: int, name: str, layout: str, kernels: str
) -> None:
    real, allowed = real_queries(layout), mask_of(layout, PATTERNS[name]).allowed().unsqueeze(1)

    def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, allowed, enable_gqa=True)[:, :, real]

    compare_functions(
        parity,
        f"attention, {kernels}, {H} heads on {K}, {name}, {layout}",
        lambda **qkv: kernel(kernels, causal_attention)(**qkv, mask=mask_of(layout, PATTERNS[name]))[
            :, :, real
        ],
        theirs,
        tensors(inputs(H, K, layout)),
        1e-14,
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("options", [{}, {"sinks": True, "softcap": 2.0}], ids=["", "sinks and soft cap"])
@each_kernel
def test_level_3_equals_level_2(
    parity: ParityRecorder, name: str, layout: str, options: dict[str, Any], kernels: str
) -> None:
    """Values are wider than keys; the levels have tiles of different sizes, and merge them differently."""
    arrays = inputs(4, 2, layout, Dv=10)
    if options:
        arrays["sinks"] = array(3, 4)
    real, softcap = real_queries(layout), options.get("softcap")
    results: list[dict[str, np.ndarray]] = []
    for level, choose, function, make in (
        (2, kernel, causal_attention, lambda x: torch.from_numpy(x).requires_grad_()),
        (3, kernel3, causal_attention3, lambda x: Tensor3(x, requires_grad=True)),
    ):
        leaves = {key: make(x) for key, x in arrays.items()}
        output = choose(kernels, function)(
            **leaves, mask=mask_of(layout, PATTERNS[name], level), softcap=softcap
        )
        direction = array(9, *output.shape)
        direction[:, :, : real.start] = 0
        output.backward(torch.from_numpy(direction) if level == 2 else direction)
        found = output.detach().numpy() if level == 2 else output.data
        gradients = {f"grad {key}": np.asarray(leaf.grad) for key, leaf in leaves.items()}
        results.append({"output": found[:, :, real]} | gradients)
    parity.each(
        {key: (results[1][key], expected) for key, expected in results[0].items()},
        component=f"attention, {kernels}, {name}, {layout}{', sinks and soft cap' if options else ''}",
        levels="v3-v2",
        tolerance=2e-14,
    )


@pytest.mark.parametrize("level", [2, 3])
def test_windows_and_chunks_are_those_of_transformers(level: int) -> None:
    settings: dict[str, Any] = {"vocab_size": 8, "hidden_size": 8, "attn_implementation": "eager"}
    attention_mask = torch.ones(2, 40, dtype=torch.int64)
    attention_mask[1, :9] = 0
    embeddings = torch.zeros(2, 40, 8)
    mistral = MistralConfig(sliding_window=12, **settings)
    llama4 = Llama4TextConfig(attention_chunk_size=12, **settings)
    for kind, config, create in (
        ("sliding_attention", mistral, create_sliding_window_causal_mask),
        ("chunked_attention", llama4, create_chunked_causal_mask),
    ):
        theirs = create(config, embeddings, attention_mask, past_key_values=None)[:, 0] == 0
        masks, constant = (masks2, torch.from_numpy) if level == 2 else (masks3, np.asarray)
        mask = masks.AttentionMask(40, 40, attention_mask=constant(attention_mask.numpy()))
        ours = np.asarray(mask.of(AttentionPattern(kind, 12)).allowed())
        real = attention_mask.bool()  # the library lets padding look at itself
        np.testing.assert_array_equal(ours[real], theirs[real].numpy())


@pytest.mark.parametrize("window", [None, WINDOW], ids=["full", "window"])
@each_kernel
def test_sinks_are_those_of_gpt_oss(
    parity: ParityRecorder, kernels: str, window: AttentionPattern | None
) -> None:
    mask = mask_of("documents", window or AttentionPattern())

    def theirs(sinks: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        module: Any = SimpleNamespace(sinks=sinks, num_key_value_groups=2, training=False)
        additive = mask.additive(q.dtype)[:, None]
        return modeling_gpt_oss.eager_attention_forward(module, q, k, v, additive, 8**-0.5)[0].transpose(1, 2)

    compare_functions(
        parity,
        f"attention with sinks, {kernels}, {'full' if window is None else 'window'}",
        lambda sinks, q, k, v: kernel(kernels, causal_attention)(q, k, v, mask, sinks=sinks),
        theirs,
        tensors({"sinks": array(5, 4)} | inputs(4, 2, "documents")),
        1e-14,
    )


@pytest.mark.parametrize("window", [None, WINDOW], ids=["full", "window"])
@each_kernel
def test_the_soft_cap_is_that_of_gemma_2(
    parity: ParityRecorder, monkeypatch: pytest.MonkeyPatch, kernels: str, window: AttentionPattern | None
) -> None:
    mask = mask_of("documents", window or AttentionPattern())
    # Gemma's softmax is in float32, whatever its inputs are; that of its inputs compares to all digits.
    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda x, dim, dtype: softmax(x, dim))

    def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        module: Any = SimpleNamespace(head_dim=8, num_key_value_groups=2, training=False)
        additive = mask.additive(q.dtype)[:, None]
        found = modeling_gemma2.eager_attention_forward(module, q, k, v, additive, softcap=1.5)
        return found[0].transpose(1, 2)

    compare_functions(
        parity,
        f"attention with a soft cap, {kernels}, {'full' if window is None else 'window'}",
        lambda q, k, v: kernel(kernels, causal_attention)(q, k, v, mask, softcap=1.5),
        theirs,
        tensors(inputs(4, 2, "documents")),
        1e-14,
    )


def test_positions_count_from_the_beginning_of_each_text() -> None:
    documents, branches = np.array([[0, 0, 0, 0, 0, 1, 1, 2]]), np.array([[0, 0, 1, 1, 2, 0, 1, 1]])
    expected = [[0, 1, 2, 3, 2, 0, 1, 0]]
    assert Packing2(torch.from_numpy(documents), torch.from_numpy(branches)).positions().tolist() == expected
    assert Packing3(documents, branches).positions().tolist() == expected
    assert Packing3(documents).positions().tolist() == [[0, 1, 2, 3, 4, 0, 1, 0]]
    assert Packing2(torch.from_numpy(documents)).positions().tolist() == [[0, 1, 2, 3, 4, 0, 1, 0]]


@pytest.mark.parametrize("masks", [masks2, masks3], ids=["v2", "v3"])
def test_layers_of_one_pattern_share_their_mask_and_its_plan(masks: Any) -> None:
    mask = masks.AttentionMask(20, 20)
    assert mask.of(AttentionPattern()) is mask
    assert mask.of(WINDOW) is mask.of(AttentionPattern("sliding_attention", 12))
    assert mask.of(WINDOW) is not mask.of(AttentionPattern("sliding_attention", 11))
    wanted = np.arange(20)[None] > 5
    some = mask.only(torch.from_numpy(wanted) if masks is masks2 else wanted)
    assert some.of(WINDOW).queries is some.queries
    assert mask.of(WINDOW).queries is None
    assert mask.allowed().sum() == 210
    assert mask.of(WINDOW).allowed().sum() == 12 * 20 - 66
