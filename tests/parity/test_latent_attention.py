"""Multi-head latent attention: both of its forms, the library's module, levels 2 and 3, whole models, cached decoding."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

from shared_data.model_files.initialization import is_buffer
from tests.parity.arrays import array
from tests.parity.block_checks import compare_functions, compare_modules, each_kernel, randomise
from tests.parity.latent_cases import (
    CASES,
    cached_logits,
    compare_levels,
    config_of,
    library_model,
    models,
    set_kernels,
    shared_inputs,
    token_ids,
)
from tests.parity.model_cases import library_config
from tests.parity.recorder import ParityRecorder
from v2_handwritten.inference.inspection import inspect
from v2_handwritten.inference.kv_cache import KVCache, bytes_per_token
from v2_handwritten.models.blocks import latent_attention as v2
from v2_handwritten.models.blocks.attention import causal_attention
from v3_numpy_deep.autograd import Tensor as ArrayTensor
from v3_numpy_deep.autograd import no_grad
from v3_numpy_deep.autograd import operations as ops
from v3_numpy_deep.models.blocks import latent_attention as v3
from v3_numpy_deep.models.blocks.attention import causal_attention as array_attention

# The library's norms and softmax compute in float32 whatever the type of the model.
MODULE, MODEL = 3e-6, {"logits": 5e-6, "loss": 1e-7, "grad": 3e-6}
LATENT = [case for case in CASES if case != "deepseek_v32"]
B, H, T, S, N, P, V, R = 2, 3, 5, 9, 6, 4, 7, 10


def test_absorbing_moves_a_matrix_from_the_key_to_the_query() -> None:
    """One head, one latent c = (1, 2): its key is W_uk c = (1·1 + 1·2, 2) = (3, 2), the query (4, 5): 3·4 + 2·5 = 22."""
    key_up = torch.tensor([[[1.0, 1.0], [0.0, 1.0]]])
    latent, query = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[4.0, 5.0]]]])
    no_rotation = torch.zeros(1, 1, 1, 0)
    q, k, _ = v2.absorb(query, no_rotation, latent, no_rotation, key_up)
    assert (query @ key_up).flatten().tolist() == [4, 9]  # W_ukᵀ q
    assert q @ k.mT == 22  # 4·1 + 9·2


def parts() -> list[np.ndarray]:
    """Plain and rotated queries, latents, rotated keys, W_uk and W_uv."""
    shapes = [(B, H, T, N), (B, H, T, P), (B, 1, S, R), (B, 1, S, P), (H, N, R), (H, V, R)]
    return [array(seed, *shape, scale=0.5) for seed, shape in enumerate(shapes)]


def expanded(
    q_plain: Tensor, q_rotated: Tensor, latent: Tensor, key: Tensor, key_up: Tensor, value_up: Tensor
) -> Tensor:
    keys_and_values = torch.cat([latent @ key_up.mT, latent @ value_up.mT], -1)
    return causal_attention(*v2.expand(q_plain, q_rotated, keys_and_values, key))


def absorbed(
    q_plain: Tensor, q_rotated: Tensor, latent: Tensor, key: Tensor, key_up: Tensor, value_up: Tensor
) -> Tensor:
    return v2.up_project(causal_attention(*v2.absorb(q_plain, q_rotated, latent, key, key_up)), value_up)


def array_expanded(q_plain: Any, q_rotated: Any, latent: Any, key: Any, key_up: Any, value_up: Any) -> Any:
    up = ops.concatenate([key_up, value_up], axis=1)
    return array_attention(*v3.expand(q_plain, q_rotated, latent @ up.transpose(0, 2, 1), key))


def array_absorbed(q_plain: Any, q_rotated: Any, latent: Any, key: Any, key_up: Any, value_up: Any) -> Any:
    return v3.up_project(array_attention(*v3.absorb(q_plain, q_rotated, latent, key, key_up)), value_up)


def test_the_absorbed_form_equals_the_expanded_one_in_every_gradient(parity: ParityRecorder) -> None:
    inputs = {
        name: torch.from_numpy(x)
        for name, x in zip(
            ("q_plain", "q_rotated", "latent", "key", "key_up", "value_up"), parts(), strict=True
        )
    }
    compare_functions(parity, "latent attention, absorbed", absorbed, expanded, inputs, 6e-15, levels="v2-v2")


@pytest.mark.parametrize(("ours", "theirs"), [(array_expanded, expanded), (array_absorbed, absorbed)])
def test_both_forms_are_the_same_at_levels_2_and_3(parity: ParityRecorder, ours: Any, theirs: Any) -> None:
    tensors = [torch.from_numpy(x).requires_grad_() for x in parts()]
    arrays = [ArrayTensor(x, requires_grad=True) for x in parts()]
    expected, actual = theirs(*tensors), ours(*arrays)
    expected.backward(torch.from_numpy(array(9, *actual.shape)))
    actual.backward(array(9, *actual.shape))
    pairs = {f"grad {i}": (a.grad, b.grad) for i, (a, b) in enumerate(zip(arrays, tensors, strict=True))}
    parity.each(
        {"output": (actual, expected)} | pairs, component=theirs.__name__, levels="v3-v2", tolerance=6e-15
    )


@pytest.mark.parametrize("kind", ["causal", "documents", "branches"])
@pytest.mark.parametrize("case", LATENT)
@each_kernel
def test_the_module_and_all_its_gradients_equal_the_library(
    parity: ParityRecorder, case: str, kind: str, kernels: str
) -> None:
    config = config_of(case)
    settings = library_config(config)
    settings._attn_implementation = "sdpa"
    ours, theirs = v2.LatentAttention(config, 0), DeepseekV3Attention(settings, layer_idx=0)
    set_kernels(ours, kernels)
    shared, _ = shared_inputs(config, kind)
    assert shared.rotary is not None
    compare_modules(
        parity,
        f"latent attention module, {kernels}, {case}, {kind}",
        ours.double(),
        randomise(theirs.eval()),
        torch.from_numpy(array(7, 2, 70, config.hidden_size)),
        MODULE,
        our_arguments=[shared],
        their_arguments={
            "position_embeddings": tuple(torch.cat([table, table], -1) for table in shared.rotary),
            "attention_mask": shared.mask.additive(torch.float64).unsqueeze(1).expand(2, -1, -1, -1),
        },
    )


@pytest.mark.parametrize("kind", ["causal", "branches", "padding"])
@pytest.mark.parametrize("case", CASES)
@each_kernel
def test_the_module_is_the_same_at_levels_2_and_3(
    parity: ParityRecorder, case: str, kind: str, kernels: str
) -> None:
    """Also where only some outputs are wanted."""
    config = config_of(case)
    theirs, ours = v2.LatentAttention(config, 0).double(), v3.LatentAttention(config, 0)
    ours.to(np.float64)
    compare_levels(
        parity, f"latent attention module, {kernels}, {case}, {kind}", ours, theirs, config, kind, kernels
    )


@pytest.mark.parametrize("case", CASES)
@each_kernel
def test_logits_loss_and_every_gradient_of_the_model_equal_the_library(
    parity: ParityRecorder, case: str, kernels: str
) -> None:
    (ours, arrays), library = models(case, kernels), library_model(case)
    ids, labels = token_ids(T=70), token_ids(T=70, seed=6)
    logits = library(torch.from_numpy(ids), use_cache=False).logits
    loss = cross_entropy(logits.flatten(0, 1), torch.from_numpy(labels).flatten())
    loss.backward()
    our_loss = ours.loss(torch.from_numpy(ids), torch.from_numpy(labels))
    our_loss.backward()
    array_loss = arrays.loss(ids, labels)
    array_loss.backward()
    expected = {name: p.grad for name, p in library.named_parameters()}
    for levels, model, found in (("v2-v1", ours, our_loss), ("v3-v1", arrays, array_loss)):
        given = ids if model is arrays else torch.from_numpy(ids)
        gradients = {name: p.grad for name, p in model.named_parameters() if not is_buffer(name)}
        # The library's indexer runs without gradients; so does ours, unless its loss is asked for.
        assert {n for n, g in gradients.items() if g is None} == {n for n, g in expected.items() if g is None}
        assert {n for n, g in gradients.items() if g is None} == {n for n in gradients if ".indexer." in n}
        with torch.no_grad(), no_grad():
            pairs: dict[str, Any] = {"logits": (model(given), logits), "loss": (found, loss)}
        pairs |= {f"grad {n}": (gradients[n], g) for n, g in expected.items() if g is not None}
        for quantity, (actual, wanted) in pairs.items():
            parity(
                component=f"{kernels} {case}",
                quantity=quantity,
                levels=levels,
                actual=actual,
                expected=wanted,
                tolerance=MODEL[quantity.split()[0]],
            )


@pytest.mark.parametrize("case", CASES)
def test_cached_decoding_gives_the_logits_of_one_pass(parity: ParityRecorder, case: str) -> None:
    ids = token_ids()
    library = library_model(case)
    with torch.no_grad():
        expected = library(torch.from_numpy(ids), use_cache=False).logits
        whole = models(case)[0](torch.from_numpy(ids))
    for levels, logits in zip(("v2", "v3"), cached_logits(case, ids, [12, 7, *[1] * 21]), strict=True):
        row = {"component": case, "quantity": "logits of cached decoding", "actual": logits}
        parity(levels=f"{levels}-v1", expected=expected, tolerance=MODEL["logits"], **row)
        parity(levels=f"{levels}-v2", expected=whole, tolerance=3e-14, **row)


@pytest.mark.parametrize("case", CASES)
def test_left_padding_changes_nothing_with_and_without_a_cache(parity: ParityRecorder, case: str) -> None:
    ids = token_ids(T=30)
    real = np.arange(30) >= np.array([[0], [9]])
    inputs = {"attention_mask": real, "position_ids": np.maximum(real.cumsum(-1) - 1, 0)}
    with torch.no_grad():
        alone = models(case)[0](torch.from_numpy(ids[1:, 9:]))
    for chunks in ([30], [14, *[1] * 16]):
        for levels, logits in zip(
            ("v2-v2", "v3-v2"), cached_logits(case, ids, chunks, **inputs), strict=True
        ):
            parity(
                component=case,
                quantity="logits with left padding",
                levels=levels,
                actual=logits[1:, 9:],
                expected=alone,
                tolerance=3e-14,
            )


def test_decoding_absorbs_and_training_expands(monkeypatch: pytest.MonkeyPatch) -> None:
    absorbed_queries: list[int] = []
    original = v2.absorb

    def counted(*arguments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        absorbed_queries.append(arguments[0].shape[2])
        return original(*arguments)

    monkeypatch.setattr(v2, "absorb", counted)
    ours, _ = models("deepseek_v3")
    ids = torch.from_numpy(token_ids())
    ours.loss(ids, ids).backward()
    assert not absorbed_queries
    cache = KVCache(ours.config, 2, 40, torch.float64)
    with torch.inference_mode():
        for chunk in (slice(0, 38), slice(38, 39), slice(39, 40)):
            ours(ids[:, chunk], cache=cache)
    assert absorbed_queries == [1, 1] * 2  # two layers, two steps


def test_the_cache_holds_latents_and_rotated_keys_only() -> None:
    """24 + 4 numbers a token and layer, where four heads of keys (8 + 4) and values (6) would be 72."""
    config = config_of("deepseek_v3")
    cache = KVCache(config, 1, 10)
    assert [tuple(state.shape) for state in cache.states] == [(2, 1, 1, 1, 10, 24), (2, 1, 1, 1, 10, 4)]
    assert bytes_per_token(config) == 2 * (24 + 4) * 4


def test_attention_maps_of_latent_attention_are_those_of_the_library(parity: ParityRecorder) -> None:
    case, ids = "deepseek_v3", token_ids(B=1)
    with torch.no_grad():
        expected = library_model(case)(torch.from_numpy(ids), output_attentions=True).attentions
    parity(
        component=case,
        quantity="attention maps",
        levels="v2-v1",
        actual=inspect(models(case)[0], ids[0].tolist()).attentions,
        expected=torch.cat(expected),
        tolerance=2e-6,
    )
