"""Log-probabilities of completions at levels 2 and 3 and in the libraries: values, gradients, the shift by one, temperature,
padding, shared prefixes, and the frozen reference."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from trl.experimental.ppo.ppo_trainer import masked_mean as library_mean
from trl.trainer.utils import selective_log_softmax

from shared_data.training import packing as plan
from tests.parity.arrays import array, integers
from tests.parity.block_checks import compare_functions, each_kernel
from tests.parity.inference_cases import trio
from tests.parity.model_cases import config_of, gradients
from tests.parity.recorder import ParityRecorder
from tests.parity.test_reward_model import relative
from v2_handwritten import kernels as kernels2
from v2_handwritten.models import log_probs as v2
from v2_handwritten.models import packing as packing2
from v2_handwritten.models.transformer import frozen_copy
from v3_numpy_deep.autograd import Tensor, no_grad
from v3_numpy_deep.autograd import kernels as kernels3
from v3_numpy_deep.models import log_probs as v3
from v3_numpy_deep.models import packing as packing3
from v3_numpy_deep.models.transformer import frozen_copy as frozen_arrays

B, T, V, C = 2, 7, 11, 6
LOGITS, IDS = array(0, B, T, V, scale=4.0), integers(1, V, B, T)
HIDDEN, WEIGHT = array(2, B * T, C), array(3, V, C)
# Rows of different lengths: padding on the left and right of a row, as in a rollout.
ATTENTION = np.array([[0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0], [1] * 12])
COMPLETION = np.array([[0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0], [0] * 5 + [1] * 7])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@each_kernel
def test_values_and_gradients_equal_the_library(
    parity: ParityRecorder, kernels: str, temperature: float
) -> None:
    ids = torch.from_numpy(IDS.ravel())
    function = kernels2.kernel(kernels, v2.linear_log_probs)
    compare_functions(
        parity,
        f"linear_log_probs, {kernels}, temperature {temperature}",
        lambda hidden, weight: function(hidden, weight, ids, temperature),
        lambda hidden, weight: selective_log_softmax(hidden @ weight.T / temperature, ids),
        {"hidden": torch.from_numpy(HIDDEN), "weight": torch.from_numpy(WEIGHT)},
        5e-15,
    )


@each_kernel
def test_levels_2_and_3_agree(parity: ParityRecorder, kernels: str) -> None:
    ids = IDS.ravel()
    function2 = kernels2.kernel(kernels, v2.linear_log_probs)
    function3 = kernels3.kernel(kernels, v3.linear_log_probs)
    theirs = [torch.from_numpy(x.copy()).requires_grad_() for x in (HIDDEN, WEIGHT)]
    ours = [Tensor(x.copy(), requires_grad=True) for x in (HIDDEN, WEIGHT)]
    expected, actual = function2(*theirs, torch.from_numpy(ids), 0.7), function3(*ours, ids, 0.7)
    direction = array(9, B * T)
    expected.backward(torch.from_numpy(direction))
    actual.backward(direction)
    pairs = {"output": (actual, expected)}
    pairs |= {f"grad {i}": (a.grad, b.grad) for i, (a, b) in enumerate(zip(ours, theirs, strict=True))}
    for quantity, (a, b) in pairs.items():
        component = f"linear_log_probs, {kernels}"
        parity(component=component, quantity=quantity, levels="v2-v3", actual=a, expected=b, tolerance=5e-15)


def test_the_gradient_of_a_log_probability_raises_its_token_and_lowers_the_others() -> None:
    """The exercise of log_probs.md: a row of the gradient sums to zero, and its expectation under p is zero."""
    logits = torch.from_numpy(LOGITS).requires_grad_()
    probabilities = logits.detach().softmax(-1)
    expectation = torch.zeros(B, T, V, dtype=torch.float64)
    for token in range(V):
        ids = torch.full((B, T), token)
        (gradient,) = torch.autograd.grad(v2.selected_log_probs(logits, ids).sum(), logits)
        assert (gradient[..., token] > 0).all()
        assert ((gradient < 0).sum(-1) == V - 1).all()
        torch.testing.assert_close(gradient.sum(-1), torch.zeros(B, T).double(), atol=1e-14, rtol=0)
        expectation += probabilities[..., token : token + 1] * gradient
    torch.testing.assert_close(expectation, torch.zeros(B, T, V).double(), atol=1e-14, rtol=0)


@each_kernel
def test_tempered_log_probabilities_are_those_of_another_distribution(kernels: str) -> None:
    """At temperature τ they are logs of softmax(z/τ), whose probabilities sum to 1; a scaled log-probability is neither."""
    hidden, ids = np.repeat(HIDDEN[:1], V, axis=0), np.arange(V)
    z = WEIGHT @ HIDDEN[0]
    for temperature in (0.5, 2.0):
        expected = np.exp(z / temperature) / np.exp(z / temperature).sum()
        for found in (
            kernels2.kernel(kernels, v2.linear_log_probs)(
                torch.from_numpy(hidden), torch.from_numpy(WEIGHT), torch.from_numpy(ids), temperature
            ),
            kernels3.kernel(kernels, v3.linear_log_probs)(Tensor(hidden), Tensor(WEIGHT), ids, temperature),
        ):
            probabilities = np.exp(np.asarray(found.numpy()))
            np.testing.assert_allclose(probabilities, expected, rtol=1e-12)
            assert np.isclose(probabilities.sum(), 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each_kernel
def test_half_precision_logits_give_float32_log_probabilities(dtype: torch.dtype, kernels: str) -> None:
    function, ids = kernels2.kernel(kernels, v2.linear_log_probs), torch.from_numpy(IDS.ravel())
    hidden, weight = (torch.from_numpy(x).to(dtype).requires_grad_() for x in (HIDDEN, WEIGHT))
    found = function(hidden, weight, ids)
    logits = (hidden @ weight.T).detach().double()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), v2.selected_log_probs(logits, ids), atol=1e-5, rtol=0)
    found.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == dtype


@each_kernel
def test_huge_logits_do_not_overflow(kernels: str) -> None:
    hidden, weight, ids = np.ones((1, 1)), np.array([[1e4], [-1e4], [0.0]]), np.array([1])
    two = kernels2.kernel(kernels, v2.linear_log_probs)(*map(torch.from_numpy, (hidden, weight, ids)))
    three = kernels3.kernel(kernels, v3.linear_log_probs)(Tensor(hidden), Tensor(weight), ids)
    assert two == three.item() == -2e4


def library_log_probs(model: Any, ids: Any, completion: Any, attention: Any, temperature: float) -> Any:
    """The library's model, called with its own positions, and trl's function."""
    logits = model(ids, (attention.cumsum(-1) - 1).clamp(min=0), attention_mask=attention)[:, :-1]
    found = selective_log_softmax(logits / temperature, ids[:, 1:])
    return found.masked_fill(completion[:, 1:] == 0, 0.0)


@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
@each_kernel
def test_completion_log_probs_and_every_gradient_agree_at_all_levels(
    parity: ParityRecorder, case: str, kernels: str
) -> None:
    """With padding on both sides; the library gets the same positions."""
    library, torch_model, array_model = trio(case)
    torch_model.kernels = array_model.kernels = kernels
    ids = integers(5, config_of(case).vocab_size, *COMPLETION.shape)
    direction = array(6, B, COMPLETION.shape[1] - 1)
    inputs = [torch.from_numpy(x) for x in (ids, COMPLETION, ATTENTION)]
    results = []
    for function, model in ((library_log_probs, library), (v2.completion_log_probs, torch_model)):
        found = function(model, *inputs, temperature=0.8)
        found.backward(torch.from_numpy(direction))
        results.append((found, gradients(model)))
    found = v3.completion_log_probs(array_model, ids, COMPLETION, ATTENTION, temperature=0.8)
    found.backward(direction)
    results.append((found, {name: p.grad for name, p in array_model.named_parameters()}))
    float32_islands = 3e-6 if case.startswith("llama") else 1e-14
    for levels, ours, theirs, tolerance in (("v2-v1", 1, 0, float32_islands), ("v2-v3", 2, 1, 3e-14)):
        for quantity, a, b in (
            ("log-probabilities", results[ours][0], results[theirs][0]),
            ("every gradient", *relative(results[ours][1], results[theirs][1])),
        ):
            parity(
                component=f"completion_log_probs, {kernels}, {case}",
                quantity=quantity,
                levels=levels,
                actual=a,
                expected=b,
                tolerance=tolerance,
            )


@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
def test_column_t_is_the_token_after_position_t_shifted_exactly_once(case: str) -> None:
    """Against the definition: the softmax of the logits at t, taken at the id that stands at t + 1."""
    _, model, arrays = trio(case)
    ids = integers(5, config_of(case).vocab_size, 1, 9)
    completion = np.array([[0, 0, 0, 0, 1, 1, 1, 1, 1]])
    with torch.no_grad(), no_grad():
        probabilities = model(torch.from_numpy(ids)).softmax(-1)
        found = v2.completion_log_probs(model, torch.from_numpy(ids), torch.from_numpy(completion))
        found3 = v3.completion_log_probs(arrays, ids, completion)
    expected = [
        probabilities[0, t, ids[0, t + 1]].log().item() if completion[0, t + 1] else 0.0 for t in range(8)
    ]
    np.testing.assert_allclose(found[0], expected, atol=1e-13)
    np.testing.assert_allclose(found3.data[0], expected, atol=1e-13)


@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
def test_padding_on_either_side_changes_no_log_probability(case: str) -> None:
    _, model, arrays = trio(case)
    V = config_of(case).vocab_size
    ids, completion = integers(5, V, 1, 8), np.array([[0, 0, 0, 1, 1, 1, 1, 1]])
    alone = v2.completion_log_probs(model, torch.from_numpy(ids), torch.from_numpy(completion)).detach()
    for left, right in ((3, 0), (0, 3), (2, 4)):
        sides = ((0, 0), (left, right))
        padded = [
            np.pad(ids, sides, constant_values=V - 1),
            np.pad(completion, sides),
            np.pad(np.ones_like(ids), sides),
        ]
        found = v2.completion_log_probs(model, *map(torch.from_numpy, padded)).detach()
        found3 = v3.completion_log_probs(arrays, *padded).data
        expected = np.pad(alone, ((0, 0), (left, right)))
        np.testing.assert_allclose(found, expected, atol=1e-13)
        np.testing.assert_allclose(found3, expected, atol=1e-13)


def test_means_do_not_count_padding(parity: ParityRecorder) -> None:
    x, mask = array(1, 2, 5), np.array([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]])
    ours = v2.masked_mean(torch.from_numpy(x), torch.from_numpy(mask))
    library = library_mean(torch.from_numpy(x), torch.from_numpy(mask))
    for levels, a, b in (("v2-v1", ours, library), ("v2-v3", v3.masked_mean(Tensor(x), mask), ours)):
        parity(component="masked_mean", quantity="mean", levels=levels, actual=a, expected=b, tolerance=1e-15)
    expected = x[mask == 1].mean()
    assert np.isclose(ours, expected)
    x[mask == 0] = np.nan  # what stands at padding may be anything
    nothing = np.zeros_like(mask)
    assert np.isclose(v2.masked_mean(torch.from_numpy(x), torch.from_numpy(mask)), expected)
    assert np.isclose(v3.masked_mean(Tensor(x), mask).item(), expected)
    assert v2.masked_mean(torch.from_numpy(x), torch.from_numpy(nothing)) == 0
    assert v3.masked_mean(Tensor(x), nothing).item() == 0


def test_the_last_token_is_found_under_padding_on_either_side() -> None:
    mask = np.array([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    for found in (packing2.last_positions(torch.from_numpy(mask)).numpy(), packing3.last_positions(mask)):
        assert found.tolist() == [2, 4, 3, 4]
    positions = [[0, 1, 2, 2, 2], [0, 0, 0, 1, 2], [0, 0, 1, 2, 2], [0, 1, 2, 3, 4]]
    for found in (packing2.positions_of(torch.from_numpy(mask)).numpy(), packing3.positions_of(mask)):
        assert found.tolist() == positions
    for find, zeros in (
        (packing2.last_positions, torch.zeros(1, 3, dtype=torch.int64)),
        (packing3.last_positions, np.zeros((1, 3), int)),
    ):
        with pytest.raises(AssertionError, match="nothing but padding"):
            find(zeros)


def joined(rows: plan.PackedRows) -> dict[str, np.ndarray]:
    """The arrays of all lines, one behind another."""
    names = ("input_ids", "position_ids", "document_ids", "branch_ids")
    columns = {name: [getattr(line, name) for line in rows.lines] for name in names}
    return {name: np.concatenate(c, axis=1)[0] for name, c in columns.items() if c[0] is not None}


@pytest.mark.parametrize("limit", [10, 17, 1000])
def test_packing_gives_every_real_token_a_place_of_its_own(limit: int) -> None:
    """Ids, positions and documents, for padding on any side and rows that fit the limit alone, by pairs, or all."""
    mask = np.concatenate([ATTENTION, [[1, 1, 0] + [0] * 9, [0] * 6 + [1] * 6]])
    mask[1, 10:] = 0  # no row is longer than 10
    ids = integers(5, 97, *mask.shape)
    rows = plan.pack_rows(ids, mask, limit)
    assert rows is not None
    found, where = joined(rows), rows.where[mask == 1]
    assert sorted(where.tolist()) == list(range(mask.sum()))
    assert found["input_ids"][where].tolist() == ids[mask == 1].tolist()
    assert found["position_ids"][where].tolist() == packing3.positions_of(mask)[mask == 1].tolist()
    documents = np.broadcast_to(np.arange(4)[:, None], mask.shape)[mask == 1]
    assert found["document_ids"][where].tolist() == documents.tolist()
    lengths = [line.input_ids.shape[1] for line in rows.lines]
    assert lengths == {10: [7, 10, 8], 17: [17, 8], 1000: [25]}[limit]


def test_lines_are_of_whole_documents_and_about_equally_long() -> None:
    """Without the fair share, a line of 20 would follow two of 100. A document over the limit is refused later, by the model."""
    assert [line.stop for line in plan._lines(11 * [20], 100)] == [80, 140, 220]
    assert [line.stop for line in plan._lines(6 * [10], 20)] == [20, 40, 60]
    assert [line.stop for line in plan._lines(6 * [10], 20, threads=2)] == [20, 30, 50, 60]  # 30 for each
    assert [line.stop for line in plan._lines([90, 30, 20, 130, 5], 110)] == [90, 140, 270, 275]


def test_rows_without_padding_that_share_nothing_are_left_as_they_are() -> None:
    assert plan.pack_rows(integers(1, 97, 2, 9), np.ones((2, 9), int), 100) is None


@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
def test_states_of_packed_rows_are_those_of_padded_ones(parity: ParityRecorder, case: str) -> None:
    """Level 2 packs on a CPU and pads on a GPU: the same numbers, and the same as at level 3."""
    _, model, arrays = trio(case)
    ids, mask = integers(5, config_of(case).vocab_size, *ATTENTION.shape), ATTENTION
    positions = packing3.positions_of(mask)
    with torch.no_grad(), no_grad():
        inputs = torch.from_numpy(ids), torch.from_numpy(mask)
        packed = packing2.packed_hidden_states(model, *inputs)[mask == 1]
        padded = model.hidden_states(inputs[0], torch.from_numpy(positions), attention_mask=inputs[1])
        level3 = packing3.packed_hidden_states(arrays, ids, mask).data[mask == 1]
        padded3 = arrays.hidden_states(ids, positions, attention_mask=mask).data
    for quantity, levels, a, b in (
        ("packed and padded", "v2-v2", packed, padded[mask == 1]),
        ("packed and padded", "v3-v3", level3, padded3[mask == 1]),
        ("packed", "v2-v3", level3, packed),
    ):
        component = f"packed_hidden_states, {case}"
        parity(component=component, quantity=quantity, levels=levels, actual=a, expected=b, tolerance=5e-15)


def rows_that_begin_alike(vocab_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids, attention mask, completion mask) of two prompts with three and two completions, in turn, and of one text alone.

    Two completions begin alike, one ends another's beginning; rows are padded on either side.
    """
    first, second, alone = (integers(seed, vocab_size, n) for seed, n in ((1, 9), (2, 7), (3, 12)))
    long, short = integers(4, vocab_size, 5), integers(5, vocab_size, 3)
    texts = [(first, long), (second, short), (first, np.r_[long[:2], short]), (alone, short), (second, short[:1]), (first, short)]  # fmt: skip
    ids, mask, completion = np.zeros((3, len(texts), 18), np.int64)
    for row, (prompt, text) in enumerate(texts):
        begin = 0 if row % 2 else 17 - len(prompt) - len(text)
        middle, end = begin + len(prompt), begin + len(prompt) + len(text)
        ids[row, begin:end], mask[row, begin:end], completion[row, middle:end] = np.r_[prompt, text], 1, 1
    return ids, mask, completion


def test_the_common_beginning_of_texts_is_packed_once() -> None:
    """Prefix and branches; a limit keeps texts apart, and so does a beginning of less than half of a text."""
    ids, mask, _ = rows_that_begin_alike(97)
    rows = plan.pack_rows(ids, mask, 1000)
    assert rows is not None
    found = joined(rows)
    assert (
        found["branch_ids"].tolist() == [0] * 9 + [1] * 5 + [2] * 5 + [3] * 3 + [0] * 8 + [1] * 2 + [0] * 15
    )
    assert found["document_ids"].tolist() == [0] * 22 + [1] * 10 + [2] * 15
    assert (found["position_ids"][rows.where] == packing3.positions_of(mask))[mask == 1].all()
    assert (found["input_ids"][rows.where] == ids)[mask == 1].all()
    apart = plan.pack_rows(ids, mask, 1000, share_prefixes=False)
    assert apart is not None
    assert "branch_ids" not in joined(apart)
    # Of three texts of 14, 14 and 12 tokens, two that have 11 in common need 17, and all, which have 9, 22.
    limited = plan.pack_rows(ids, mask, 19)
    assert limited is not None
    assert set(joined(limited)["document_ids"].tolist()) == {0, 1, 2, 3}
    half = np.array([[1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 9, 8, 7], [1, 2, 3, 0, 0, 0, 0]])
    assert plan.pack_rows(half[:2], np.ones((2, 7), int), 1000) is not None
    assert plan.pack_rows(half[1:], np.ones((2, 7), int), 1000) is None


Found = tuple[np.ndarray, dict[str, np.ndarray]]  # states, and every gradient by its parameter's name


def learn_from_rows(
    model: Any,
    arrays: Any,
    ids: np.ndarray,
    mask: np.ndarray | None,
    keep: np.ndarray | None,
    kept: np.ndarray,
) -> tuple[Found, Found]:
    """What levels 2 and 3 find for the states at `kept`, whether only these are computed or all."""
    for parameter in model.parameters():
        parameter.grad = None
    arrays.zero_grad()
    inputs = (None if x is None else torch.from_numpy(x) for x in (ids, mask, keep))
    ours = packing2.packed_hidden_states(model, *inputs)
    theirs = packing3.packed_hidden_states(arrays, ids, mask, keep)
    if keep is None:
        ours, theirs = ours[torch.from_numpy(kept)], theirs[kept]
    assert ours.shape == theirs.shape == (kept.sum(), model.config.hidden_size)
    weights = array(3, *theirs.shape)
    (ours * torch.from_numpy(weights)).pow(2).sum().backward()
    ((theirs * weights) * (theirs * weights)).sum().backward()
    return (
        (ours.detach().numpy(), {name: grad.numpy() for name, grad in gradients(model).items()}),
        (theirs.data, {name: p.grad for name, p in arrays.named_parameters()}),
    )


def compare_ways(
    parity: ParityRecorder,
    component: str,
    actual: tuple[Found, Found],
    expected: tuple[Found, Found],
    tolerance: float,
) -> None:
    """States and gradients of one way and of another, at each level by itself."""
    for levels, (states, some), (all_states, every) in zip(("v2-v2", "v3-v3"), actual, expected, strict=True):
        for quantity, a, b in (("states", states, all_states), ("every gradient", *relative(some, every))):
            parity(
                component=component,
                quantity=quantity,
                levels=levels,
                actual=a,
                expected=b,
                tolerance=tolerance,
            )


@pytest.mark.parametrize("some", [False, True], ids=["all states", "some states"])
@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
def test_sharing_prefixes_changes_neither_states_nor_gradients(
    parity: ParityRecorder, monkeypatch: pytest.MonkeyPatch, case: str, some: bool
) -> None:
    """Each text as if it stood alone, and a gradient that is the sum over the texts that share."""
    _, model, arrays = trio(case)
    ids, mask, completion = rows_that_begin_alike(config_of(case).vocab_size)
    # Where completions are predicted from, the ends of prompts among them.
    before = np.pad(completion[:, 1:].astype(bool), ((0, 0), (0, 1)))
    keep, kept = (before, before) if some else (None, mask.astype(bool))
    found, original = [], plan.pack_rows
    for share in (True, False):

        def packed(*arguments: Any, share: bool = share, **options: Any) -> Any:
            return original(*arguments, **options | {"share_prefixes": share})

        with monkeypatch.context() as patch:
            for module in (packing2, packing3):
                patch.setattr(module, "pack_rows", packed)
            found.append(learn_from_rows(model, arrays, ids, mask, keep, kept))
    component = f"shared prefixes, {case}, {'some' if some else 'all'} states"
    compare_ways(parity, component, *found, tolerance=1e-14)


def test_dropout_keeps_texts_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared, they would all lose the same inputs; evaluation shares again."""
    ids, mask, _ = rows_that_begin_alike(96)
    shared = []
    for module in (packing2, packing3):
        original = module.pack_rows
        monkeypatch.setattr(
            module,
            "pack_rows",
            lambda *a, original=original, **k: shared.append(k["share_prefixes"]) or original(*a, **k),
        )
    _, model, arrays = trio("gpt2")
    for dropout, training in ((0.1, True), (0.1, False), (0.0, True)):
        for each in (model, arrays):
            each.config = dataclasses.replace(each.config, attention_dropout=dropout)
            each.train(training)
        packing2.packed_hidden_states(model, torch.from_numpy(ids), torch.from_numpy(mask))
        packing3.packed_hidden_states(arrays, ids, mask)
    assert shared == [False] * 2 + [True] * 4


@pytest.mark.parametrize("padded", [False, True], ids=["whole rows", "padding"])
@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
@each_kernel
def test_states_at_some_positions_are_those_of_all(
    parity: ParityRecorder, case: str, padded: bool, kernels: str
) -> None:
    """The last block skips the others after its attention; states and gradients must not notice."""
    _, model, arrays = trio(case)
    model.kernels = arrays.kernels = kernels
    ids, kept = integers(5, config_of(case).vocab_size, *ATTENTION.shape), COMPLETION.astype(bool)
    mask = ATTENTION if padded else None
    some, every = (learn_from_rows(model, arrays, ids, mask, keep, kept) for keep in (kept, None))
    component = f"logits_to_keep, {kernels}, {case}, {'padding' if padded else 'whole rows'}"
    compare_ways(parity, component, some, every, tolerance=5e-15)


def test_training_the_policy_leaves_the_reference_alone() -> None:
    _, model, arrays = trio("gpt2")
    ids, completion = integers(5, 96, 1, 8), np.array([[0, 0, 0, 1, 1, 1, 1, 1]])
    torch_inputs = torch.from_numpy(ids), torch.from_numpy(completion)
    reference, reference3 = frozen_copy(model.train()), frozen_arrays(arrays.train())
    before = v2.completion_log_probs(reference, *torch_inputs)
    before3 = v3.completion_log_probs(reference3, ids, completion).data
    assert not before.requires_grad
    assert not any(module.training for frozen in (reference, reference3) for module in frozen.modules())
    assert reference.lm_head.weight is reference.token_embedding.weight  # tied, as in the policy
    assert reference3.lm_head.weight is reference3.token_embedding.weight
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1
    for parameter in arrays.parameters():
        parameter.data += 0.1
    assert torch.equal(v2.completion_log_probs(reference, *torch_inputs), before)
    assert np.array_equal(v3.completion_log_probs(reference3, ids, completion).data, before3)
    assert not torch.allclose(v2.completion_log_probs(model, *torch_inputs), before)
    assert model.training
    assert all(p.requires_grad for p in [*model.parameters(), *arrays.parameters()])
