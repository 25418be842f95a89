"""The lightning indexer: its scores, its selection, its loss and its training; levels 2 and 3, the library, caches and packed rows."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.models.deepseek_v32.modeling_deepseek_v32 import DeepseekV32Attention, DeepseekV32Indexer

from shared_data.errors import UserError
from shared_data.model_files.config import ModelConfig
from tests.parity.arrays import array, integers
from tests.parity.block_checks import each_kernel, randomise
from tests.parity.latent_cases import (
    CASES,
    SPARSE_LLAMA,
    cached_logits,
    compare_levels,
    config_of,
    mask_of,
    models,
    set_kernels,
    shared_inputs,
    token_ids,
)
from tests.parity.model_cases import library_config, packed
from tests.parity.recorder import ParityRecorder
from v2_handwritten.kernels import fused as fused2
from v2_handwritten.models.blocks import sparse_indexer as v2
from v2_handwritten.models.blocks.attention import SharedInputs, attention_weights
from v2_handwritten.models.blocks.latent_attention import LatentAttention
from v3_numpy_deep.autograd import Tensor as ArrayTensor
from v3_numpy_deep.autograd import fused, no_grad
from v3_numpy_deep.autograd.fused import gathered_attention
from v3_numpy_deep.autograd.fused import sparse_indexer as fused_indexer
from v3_numpy_deep.autograd.gradcheck import gradcheck
from v3_numpy_deep.autograd.kernels import kernel
from v3_numpy_deep.models.blocks import sparse_indexer as v3
from v3_numpy_deep.models.blocks.selected_attention import selected_attention as array_selected_attention
from v3_numpy_deep.models.packing import Packing as ArrayPacking

KINDS = ["causal", "documents", "branches", "padding"]
HEADS, SIZE = 16, 12


def test_scores_and_selection_of_one_query() -> None:
    """Two heads of size 1 with the weights 1 and -0.5: a head that does not match adds nothing, one that does may subtract."""
    queries, weights = torch.tensor([[[[2.0], [-1.0]]]]), torch.tensor([[[1.0, -0.5]]])
    keys = torch.tensor([[[1.0], [-4.0], [3.0], [0.5]]])
    scores = v2.index_scores(queries, keys, weights) * 2**0.5  # without 1/√H
    torch.testing.assert_close(scores, torch.tensor([[[2.0, -2.0, 6.0, 1.0]]]))
    allowed = torch.tensor([[[True, True, False, True]]])
    assert v2.select_keys(scores, allowed, 2).tolist() == [[[0, 3]]]
    assert v2.select_keys(scores, allowed, 4).tolist() == [[[0, 3, 1, -1]]]
    assert v3.select_keys(scores.numpy(), allowed.numpy(), 4).tolist() == [[[0, 3, 1, -1]]]


def index_inputs(heads: int = HEADS) -> list[np.ndarray]:
    return [array(1, 2, 70, heads, SIZE), array(2, 2, 70, SIZE), array(3, 2, 70, heads)]


def sets(selected: Any) -> list[set[int]]:
    """What each query sees."""
    return [set(row) - {-1} for row in np.asarray(selected).reshape(-1, selected.shape[-1]).tolist()]


@pytest.mark.parametrize("heads", [HEADS, 2], ids=["no ties", "ties"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_selection_is_the_library_indexer_s(kind: str, heads: int) -> None:
    """With two heads, a fourth of the keys match neither, and their scores are equal: 0."""
    config = ModelConfig(**CASES["deepseek_v32"] | {"index_n_heads": heads})
    theirs = randomise(DeepseekV32Indexer(library_config(config), 0)).float()
    ours = v2.Indexer(config)
    ours.load_state_dict(theirs.state_dict())
    (shared, _), x = shared_inputs(config, kind), torch.from_numpy(array(7, 2, 70, 32)).float()
    query_input = torch.from_numpy(array(8, 2, 70, 16)).float()
    shared.rotary = tuple(table.float() for table in shared.rotary or ())
    wide = tuple(torch.cat([table, table], -1) for table in shared.rotary)
    allowed = shared.mask.allowed().expand(2, -1, -1)
    expected = theirs(x, query_input, wide, allowed, None).long()
    visible = expected.where(allowed.gather(-1, expected), -1)
    selected = v2.selected_keys(ours(x, query_input, shared), shared.mask, config.index_topk)
    assert sets(selected) == sets(visible)
    assert {len(each) for each in sets(selected)} >= {1, 9}
    scores = v2.index_scores(*ours(x, query_input, shared))
    assert bool((scores == 0).any()) == (heads == 2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_selection_is_the_same_at_levels_2_and_3_and_in_pieces(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    masks, inputs = mask_of(kind), index_inputs()
    theirs = v2.IndexInputs(*map(torch.from_numpy, inputs))
    ours = v3.IndexInputs(*map(ArrayTensor, inputs))
    expected = sets(v2.select_keys(v2.index_scores(*theirs), masks[0].allowed(), 9))
    for pieces in (False, True):
        if pieces:
            monkeypatch.setattr(v2, "SCORES_AT_ONCE", 2 * HEADS * 70 * 5)
            monkeypatch.setattr(v3, "SCORES_AT_ONCE", 2 * HEADS * 70 * 5)
        assert sets(v2.selected_keys(theirs, masks[0], 9)) == expected
        assert sets(v3.selected_keys(ours, masks[1], 9)) == expected


@pytest.mark.parametrize("kind", ["causal", "documents", "branches"])
@each_kernel
def test_the_module_and_all_its_gradients_equal_the_library(
    parity: ParityRecorder, kind: str, kernels: str
) -> None:
    """Neither has gradients in the indexer: those parameters are frozen in both, and compared in the selection."""
    config = config_of("deepseek_v32")
    settings = library_config(config)
    settings._attn_implementation = "eager"
    ours, theirs = LatentAttention(config, 0), DeepseekV32Attention(settings, layer_idx=0)
    set_kernels(ours, kernels)
    shared, _ = shared_inputs(config, kind)
    theirs = randomise(theirs.eval())
    ours.double().load_state_dict(theirs.state_dict())
    wide = tuple(torch.cat([table, table], -1) for table in shared.rotary or ())
    additive = shared.mask.additive(torch.float64).unsqueeze(1).expand(2, -1, -1, -1)
    results = []
    for module, arguments in (
        (ours, {"shared": shared}),
        (theirs, {"position_embeddings": wide, "attention_mask": additive}),
    ):
        x = torch.from_numpy(array(7, 2, 70, 32)).requires_grad_()
        output = module(x, **arguments)
        output = output[0] if isinstance(output, tuple) else output
        output.backward(torch.from_numpy(array(9, *output.shape)))
        found = {f"grad {name}": p.grad for name, p in module.named_parameters()}
        assert {name for name, g in found.items() if g is None} == {
            n for n in found if ".indexer." in f".{n[5:]}"
        }
        results.append(
            {"output": output, "grad x": x.grad} | {n: g for n, g in found.items() if g is not None}
        )
    parity.each(
        {name: (results[0][name], results[1][name]) for name in results[1]},
        component=f"deepseek_v32 attention, {kernels}, {kind}",
        levels="v2-v1",
        tolerance=5e-6,
    )


@pytest.mark.parametrize("kind", ["causal", "branches", "padding"])
@each_kernel
def test_the_module_of_sparse_llama_is_the_same_at_levels_2_and_3(
    parity: ParityRecorder, kind: str, kernels: str
) -> None:
    config = config_of("sparse_llama")
    theirs, ours = v2.IndexedAttention(config, 1).double(), v3.IndexedAttention(config, 1)
    ours.to(np.float64)
    compare_levels(parity, f"sparse_llama attention, {kernels}, {kind}", ours, theirs, config, kind, kernels)


@pytest.mark.parametrize("sparse", [False, True], ids=["warm-up", "selected"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_and_its_gradients_are_the_same_at_levels_2_and_3(
    parity: ParityRecorder, kind: str, sparse: bool
) -> None:
    masks, inputs = mask_of(kind), index_inputs()
    q, k = array(4, 2, 4, 70, 8), array(5, 2, 2, 70, 8)
    selected = v3.selected_keys(v3.IndexInputs(*map(ArrayTensor, inputs)), masks[1], 9) if sparse else None
    tensors = [torch.from_numpy(x).requires_grad_() for x in inputs]
    arrays = [ArrayTensor(x, requires_grad=True) for x in inputs]
    given = None if selected is None else torch.from_numpy(selected)
    expected = v2.attention_kl(*tensors, torch.from_numpy(q), torch.from_numpy(k), given, masks[0])
    actual = v3.attention_kl(*arrays, ArrayTensor(q), ArrayTensor(k), selected, masks[1])
    for loss in (expected, actual):
        loss.backward()
    row = {"component": f"indexer loss, {kind}, {'selected' if sparse else 'warm-up'}", "levels": "v3-v2"}
    parity(quantity="loss", actual=actual, expected=expected, tolerance=1e-15, **row)
    gradients = {f"grad {i}": (a.grad, b.grad) for i, (a, b) in enumerate(zip(arrays, tensors, strict=True))}
    parity.each(gradients, tolerance=5e-17, **row)  # of a mean over 140 queries


def test_the_loss_is_the_kl_divergence_that_torch_computes(parity: ParityRecorder) -> None:
    mask, scores = mask_of("padding")[0], torch.from_numpy(array(1, 2, 70, 70))
    target = attention_weights(*(torch.from_numpy(array(i, 2, 4, 70, 8)) for i in (2, 3)), mask).sum((1, 2))
    allowed = mask.allowed().expand(2, -1, -1)
    rows = allowed.any(-1)
    log_index = scores.masked_fill(~allowed, -torch.inf)[rows].log_softmax(-1)
    wanted = (target / 4)[rows]
    terms = torch.nn.functional.kl_div(log_index, wanted, reduction="none").where(allowed[rows], 0.0)
    parity(
        component="indexer loss",
        quantity="loss",
        levels="v2-v1",
        actual=v2.indexer_loss(scores, target, None, mask),
        expected=terms.sum(-1).mean(),
        tolerance=3e-16,
    )


def test_derivatives_agree_with_finite_differences_in_both_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """In tiles of a few queries, too."""
    mask, inputs = mask_of("branches")[1], index_inputs(3)
    qkv = [array(4, 2, 4, 70, 8), array(5, 2, 2, 70, 8), array(6, 2, 2, 70, 5)]
    selected = v3.selected_keys(v3.IndexInputs(*map(ArrayTensor, inputs)), mask, 9)
    target = array(8, 2, 70, 70) ** 2
    monkeypatch.setattr(gathered_attention, "TILE_ELEMENTS", 3000)
    monkeypatch.setattr(fused_indexer, "TILE_SCORES", 8000)
    for choice in ("plain", "fused"):
        attend, learn = kernel(choice, array_selected_attention), kernel(choice, v3.attention_kl)
        assert gradcheck(lambda *x, f=attend: f(*x, selected, mask), *qkv) < 1e-7
        for chosen in (None, selected):
            constants = (ArrayTensor(qkv[0]), ArrayTensor(qkv[1]), chosen, mask)
            assert gradcheck(lambda *x, f=learn, c=constants: f(*x, *c), *inputs) < 1e-7
    for chosen in (None, selected):
        assert (
            gradcheck(
                lambda s, c=chosen: v3.indexer_loss(s, ArrayTensor(target), c, mask), array(9, 2, 70, 70)
            )
            < 1e-7
        )


def test_keys_that_are_not_selected_are_never_touched() -> None:
    q, k, v = (array(seed, 1, 2, 6, 4) for seed in (1, 2, 3))
    selected = np.array([[[0, -1], [0, 1], [0, 1], [0, 3], [3, 1], [0, 5]]])
    k[:, :, [2, 4]], v[:, :, [2, 4]] = np.nan, np.nan  # 0 · NaN would be NaN
    masks = mask_of("causal")
    tensors = map(torch.from_numpy, (q, k, v, selected))
    assert fused2.selected_attention(*tensors, masks[0]).isfinite().all()
    assert np.isfinite(fused.selected_attention(*map(ArrayTensor, (q, k, v)), selected, masks[1]).data).all()


@pytest.mark.parametrize("case", ["deepseek_v32", "sparse_llama"])
def test_packed_documents_are_read_as_if_alone(parity: ParityRecorder, case: str) -> None:
    ours, arrays = models(case)
    ids, inputs = token_ids(T=70), packed([[25, 45], [61, 9]])
    with torch.no_grad(), no_grad():
        logits = ours(torch.from_numpy(ids), **inputs)
        array_logits = arrays(
            ids, inputs["position_ids"].numpy(), ArrayPacking(inputs["packing"].document_ids.numpy())
        )
        alone = ours(torch.from_numpy(ids[:1, 25:]))
    for levels, found in (("v2-v2", logits), ("v3-v2", array_logits.data)):
        parity(
            component=case,
            quantity="logits of a packed document",
            levels=levels,
            actual=found[:1, 25:],
            expected=alone,
            tolerance=3e-14,
        )


@pytest.mark.parametrize("padding", [0, 9])
def test_sparse_llama_decodes_from_its_cache(parity: ParityRecorder, padding: int) -> None:
    """Its first layer has no indexer, and no key of one in the cache."""
    ids, inputs = token_ids(T=40), {}
    if padding:
        real = np.arange(40) >= np.array([[0], [padding]])
        inputs = {"attention_mask": real, "position_ids": np.maximum(real.cumsum(-1) - 1, 0)}
    with torch.no_grad():
        whole = models("sparse_llama")[0](torch.from_numpy(ids[1:, padding:]))
    found = cached_logits("sparse_llama", ids, [14, 5, *[1] * 21], **inputs)
    for levels, logits in zip(("v2-v2", "v3-v2"), found, strict=True):
        parity(
            component="sparse_llama",
            quantity="logits of cached decoding",
            levels=levels,
            actual=logits[1:, padding:],
            expected=whole,
            tolerance=3e-14,
        )


def learning(case: str, **options: Any) -> tuple[torch.nn.Module, SharedInputs, Tensor]:
    """An attention module of level 2 whose indexer is trained."""
    config = config_of(case)
    module = (LatentAttention if case == "deepseek_v32" else v2.IndexedAttention)(config, 1).double()
    shared, _ = shared_inputs(config, "documents", indexer_losses=[], **options)
    return randomise(module), shared, torch.from_numpy(array(7, 2, 70, 32)).requires_grad_()


@pytest.mark.parametrize("dense", [True, False], ids=["warm-up", "selected"])
@pytest.mark.parametrize("case", ["deepseek_v32", "sparse_llama"])
def test_the_indexer_s_loss_reaches_the_indexer_and_nothing_else(case: str, dense: bool) -> None:
    module, shared, x = learning(case, dense_indexer=dense)
    module(x, shared)
    assert shared.indexer_losses is not None
    (loss,) = shared.indexer_losses
    loss.backward()
    touched = {name for name, p in module.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert touched == {name for name, _ in module.named_parameters() if name.startswith("indexer.")}
    assert x.grad is None


def test_in_the_warm_up_attention_reads_everything() -> None:
    """And so it does where a text has no more keys than may be selected."""
    module, shared, x = learning("sparse_llama", dense_indexer=True)
    dense = super(v2.IndexedAttention, module).forward(x, shared)
    torch.testing.assert_close(module(x, shared), dense, rtol=0, atol=0)
    shared.dense_indexer = False
    assert (module(x, shared) - dense).abs().max() > 0.1
    module.indexer.index_topk = 70
    torch.testing.assert_close(module(x, shared), dense, rtol=0, atol=0)


def texts_of_four_kinds(seed: int) -> Tensor:
    """Tokens whose first four dimensions say which of four kinds they are; the rest is noise."""
    x = torch.from_numpy(array(seed, 2, 70, 32, scale=0.3))
    x[..., :4] = torch.nn.functional.one_hot(torch.from_numpy(integers(seed, 4, 2, 70)), 4)
    return x


def test_recall_rises_as_the_indexer_learns() -> None:
    """An attention that looks for tokens of the query's kind, in the dimensions that hardly turn. Recall: its weight on the selected keys."""
    module, shared, _ = learning("sparse_llama", dense_indexer=True)
    indexer = module.indexer
    with torch.no_grad():
        for weight in (module.q_proj.weight, module.k_proj.weight):
            weight.zero_()
            weight.view(-1, 8, 32)[:, [2, 3, 6, 7], :4] = 4 * torch.eye(4, dtype=torch.float64)
    optimizer = torch.optim.Adam(indexer.parameters(), lr=0.02)

    @torch.no_grad()
    def recall() -> tuple[float, float]:
        """On texts that are not trained on; and that of the best nine keys."""
        x = texts_of_four_kinds(1)
        weights = attention_weights(*module.project(x, shared)[:2], shared.mask).mean((1, 2))
        selected = v2.selected_keys(indexer(x, x, shared), shared.mask, indexer.index_topk)
        found = weights.gather(-1, selected.clamp(min=0)) * (selected >= 0)
        return float(found.sum(-1).mean()), float(weights.topk(indexer.index_topk).values.sum(-1).mean())

    before, best = recall()
    for step in range(80):
        shared.indexer_losses, shared.dense_indexer = [], step < 50  # warm-up, then on what it selects itself
        module(texts_of_four_kinds(100 + step), shared)
        shared.indexer_losses[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert before < 0.6
    assert best > 0.9
    assert recall()[0] > best - 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index_n_heads": 0}, "indexed_attention needs index_n_heads, a positive number; set it"),
        ({"index_topk": 0}, "indexed_attention needs index_topk, a positive number; set it"),
        ({"index_head_dim": 6}, "index_head_dim 6 is smaller than head_dim 8"),
    ],
)
def test_an_indexer_that_cannot_be_built_is_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ModelConfig(**SPARSE_LLAMA | change)
