"""Log-probabilities of replies at all levels: values, gradients, the shift by one, temperature, padding, and the frozen reference."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from v2_handwritten.models.padding import (
    hidden_states_of_rows,
    last_positions,
    pack_rows,
    padded_inputs,
    positions_of,
)

from tests.parity.arrays import array, integers
from tests.parity.block_checks import compare_functions
from tests.parity.inference_cases import trio
from tests.parity.model_cases import config_of, gradients
from tests.parity.recorder import ParityRecorder
from tests.parity.test_reward_model import relative
from v1_quick.align.algorithms import log_probabilities as v1
from v2_handwritten.align.algorithms import log_probabilities as v2
from v2_handwritten.models import padding as padding2
from v3_numpy_deep.align.algorithms import log_probabilities as v3
from v3_numpy_deep.autograd import Tensor, no_grad
from v3_numpy_deep.autograd.gradcheck import gradcheck
from v3_numpy_deep.models import padding as padding3

B, T, V, C = 2, 7, 11, 6
LOGITS, IDS = array(0, B, T, V, scale=4.0), integers(1, V, B, T)
FUNCTIONS = ["plain_selected_log_probabilities", "selected_log_probabilities"]
# Rows of different lengths: padding on the left and right of a row, as in a rollout.
ATTENTION = np.array([[0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0], [1] * 12])
REPLY = np.array([[0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0], [0] * 5 + [1] * 7])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients_equal_the_library(
    parity: ParityRecorder, name: str, temperature: float
) -> None:
    ids = torch.from_numpy(IDS)
    compare_functions(
        parity,
        f"{name}, temperature {temperature}",
        lambda logits: getattr(v2, name)(logits, ids, temperature),
        lambda logits: v1.selected_log_probabilities(logits, ids, temperature),
        {"logits": torch.from_numpy(LOGITS)},
        2e-15,
    )


def compare_levels(parity: ParityRecorder, component: str, function: Any, *inputs: np.ndarray) -> None:
    """`function(level, *inputs)` at levels 2 and 3: its output and the gradient of each input."""
    theirs = [torch.from_numpy(x.copy()).requires_grad_() for x in inputs]
    ours = [Tensor(x.copy(), requires_grad=True) for x in inputs]
    expected, actual = function(v2, *theirs), function(v3, *ours)
    direction = np.asarray(array(9, *actual.shape))
    expected.backward(torch.from_numpy(direction))
    actual.backward(direction)
    pairs = {"output": (actual, expected)}
    pairs |= {f"grad {i}": (a.grad, b.grad) for i, (a, b) in enumerate(zip(ours, theirs, strict=True))}
    for quantity, (a, b) in pairs.items():
        parity(component=component, quantity=quantity, levels="v2-v3", actual=a, expected=b, tolerance=5e-15)


def constant(level: Any, x: np.ndarray) -> Any:
    return torch.from_numpy(x) if level is v2 else x


@pytest.mark.parametrize("chunk", [1, 4 * V, 2**18])
@pytest.mark.parametrize("name", [*FUNCTIONS, "linear_log_probabilities", "entropy"])
def test_levels_2_and_3_agree_in_any_chunks(
    parity: ParityRecorder, monkeypatch: pytest.MonkeyPatch, name: str, chunk: int
) -> None:
    for level in (v2, v3):
        monkeypatch.setattr(level, "_CHUNK_ELEMENTS", chunk)
    if name == "entropy":
        compare_levels(parity, name, lambda level, logits: level.entropy(logits), LOGITS)
    elif name == "linear_log_probabilities":
        compare_levels(
            parity,
            f"{name}, chunks of {chunk}",
            lambda level, hidden, weight: level.linear_log_probabilities(
                hidden, weight, constant(level, IDS.reshape(-1)), 0.7
            ),
            array(2, B * T, C),
            array(3, V, C),
        )
    else:
        compare_levels(
            parity,
            f"{name}, chunks of {chunk}",
            lambda level, logits: getattr(level, name)(logits, constant(level, IDS), 0.7),
            LOGITS,
        )


def test_the_derivatives_of_level_3_are_right() -> None:
    ids = IDS.reshape(-1)
    assert gradcheck(lambda z: v3.selected_log_probabilities(z, IDS, 0.7), LOGITS) < 1e-7
    operation = lambda h, W: v3.linear_log_probabilities(h, W, ids, 0.7)  # noqa: E731
    assert gradcheck(operation, array(2, B * T, C), array(3, V, C)) < 1e-7


def test_entropy_equals_the_library(parity: ParityRecorder) -> None:
    logits = torch.from_numpy(LOGITS)
    compare_functions(parity, "entropy", v2.entropy, v1.entropy, {"logits": logits}, 5e-15)


def test_the_gradient_of_a_log_probability_raises_its_token_and_lowers_the_others() -> None:
    """The exercise of log_probabilities.md: a row of the gradient sums to zero, and its expectation under p is zero."""
    logits = torch.from_numpy(LOGITS).requires_grad_()
    probabilities = logits.detach().softmax(-1)
    expectation = torch.zeros(B, T, V, dtype=torch.float64)
    for token in range(V):
        ids = torch.full((B, T), token)
        (gradient,) = torch.autograd.grad(v2.selected_log_probabilities(logits, ids).sum(), logits)
        assert (gradient[..., token] > 0).all()
        assert ((gradient < 0).sum(-1) == V - 1).all()
        torch.testing.assert_close(gradient.sum(-1), torch.zeros(B, T).double(), atol=1e-14, rtol=0)
        expectation += probabilities[..., token : token + 1] * gradient
    torch.testing.assert_close(expectation, torch.zeros(B, T, V).double(), atol=1e-14, rtol=0)


def test_tempered_log_probabilities_are_those_of_another_distribution() -> None:
    """At temperature τ they are logs of softmax(z/τ), whose probabilities sum to 1; a scaled log-probability is neither."""
    rows, all_ids = np.repeat(LOGITS[:1, :1], V, axis=0), np.arange(V)[:, None]
    plain = v2.selected_log_probabilities(torch.from_numpy(rows), torch.from_numpy(all_ids)).numpy()
    for temperature in (0.5, 2.0):
        expected = np.exp(LOGITS[0, 0] / temperature) / np.exp(LOGITS[0, 0] / temperature).sum()
        for level in (v2, v3):
            logits = torch.from_numpy(rows) if level is v2 else Tensor(rows)
            found = level.selected_log_probabilities(logits, constant(level, all_ids), temperature)
            probabilities = np.exp(np.asarray(found.numpy())).ravel()
            np.testing.assert_allclose(probabilities, expected, rtol=1e-12)
            assert np.isclose(probabilities.sum(), 1)
        assert abs(np.log(expected) - plain.ravel() / temperature).max() > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_give_float32_log_probabilities(dtype: torch.dtype) -> None:
    logits = torch.from_numpy(LOGITS).to(dtype).requires_grad_()
    found = v2.selected_log_probabilities(logits, torch.from_numpy(IDS))
    exact = v2.selected_log_probabilities(logits.detach().double(), torch.from_numpy(IDS))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, atol=1e-5, rtol=0)
    found.sum().backward()
    assert logits.grad is not None
    assert logits.grad.dtype == dtype


def test_huge_logits_do_not_overflow() -> None:
    logits = np.array([[[1e4, -1e4, 0.0]]])
    for name in FUNCTIONS:
        two = getattr(v2, name)(torch.from_numpy(logits), torch.tensor([[1]]))
        assert two == getattr(v3, name)(Tensor(logits), np.array([[1]])).item() == -2e4


@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
def test_reply_log_probabilities_and_every_gradient_agree_at_all_levels(
    parity: ParityRecorder, case: str
) -> None:
    """With padding on both sides; the library gets the same positions."""
    library, torch_model, array_model = trio(case)
    ids = integers(5, config_of(case).vocab_size, *REPLY.shape)
    direction = array(6, B, REPLY.shape[1] - 1)
    inputs = [torch.from_numpy(x) for x in (ids, REPLY, ATTENTION)]
    results = []
    for level, model in ((v1, library), (v2, torch_model)):
        found = level.reply_log_probabilities(model, *inputs, temperature=0.8)
        found.backward(torch.from_numpy(direction))
        results.append((found, gradients(model)))
    found = v3.reply_log_probabilities(array_model, ids, REPLY, ATTENTION, temperature=0.8)
    found.backward(direction)
    results.append((found, {name: p.grad for name, p in array_model.named_parameters()}))
    float32_islands = 3e-6 if case.startswith("llama") else 1e-14
    for levels, ours, theirs, tolerance in (("v2-v1", 1, 0, float32_islands), ("v2-v3", 2, 1, 3e-14)):
        for quantity, a, b in (
            ("log-probabilities", results[ours][0], results[theirs][0]),
            ("every gradient", *relative(results[ours][1], results[theirs][1])),
        ):
            parity(
                component=f"reply_log_probabilities, {case}",
                quantity=quantity,
                levels=levels,
                actual=a,
                expected=b,
                tolerance=tolerance,
            )


@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
def test_column_t_is_the_token_after_position_t_shifted_exactly_once(case: str) -> None:
    """Against the definition: the softmax of the logits at t, read at the id that stands at t + 1."""
    _, model, arrays = trio(case)
    ids = integers(5, config_of(case).vocab_size, 1, 9)
    reply = np.array([[0, 0, 0, 0, 1, 1, 1, 1, 1]])
    with torch.no_grad(), no_grad():
        probabilities = model(torch.from_numpy(ids)).softmax(-1)
        found = v2.reply_log_probabilities(model, torch.from_numpy(ids), torch.from_numpy(reply))
        found3 = v3.reply_log_probabilities(arrays, ids, reply)
    expected = [probabilities[0, t, ids[0, t + 1]].log().item() if reply[0, t + 1] else 0.0 for t in range(8)]
    np.testing.assert_allclose(found[0], expected, atol=1e-13)
    np.testing.assert_allclose(found3.data[0], expected, atol=1e-13)
    # The probabilities of a one-token reply, over all tokens that could stand there, sum to 1.
    assert np.isclose(np.exp(expected[3]), probabilities[0, 3, ids[0, 4]].item())


@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
def test_padding_on_either_side_changes_no_log_probability(case: str) -> None:
    _, model, arrays = trio(case)
    V = config_of(case).vocab_size
    ids, reply = integers(5, V, 1, 8), np.array([[0, 0, 0, 1, 1, 1, 1, 1]])
    alone = v2.reply_log_probabilities(model, torch.from_numpy(ids), torch.from_numpy(reply)).detach()
    for left, right in ((3, 0), (0, 3), (2, 4)):
        sides = ((0, 0), (left, right))
        padded = [
            np.pad(ids, sides, constant_values=V - 1),
            np.pad(reply, sides),
            np.pad(np.ones_like(ids), sides),
        ]
        found = v2.reply_log_probabilities(model, *map(torch.from_numpy, padded)).detach()
        found3 = v3.reply_log_probabilities(arrays, *padded).data
        expected = np.pad(alone, ((0, 0), (left, right)))
        np.testing.assert_allclose(found, expected, atol=1e-13)
        np.testing.assert_allclose(found3, expected, atol=1e-13)


def test_means_do_not_count_padding(parity: ParityRecorder) -> None:
    x, mask = array(1, 2, 5), np.array([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]])
    ours = v2.masked_mean(torch.from_numpy(x), torch.from_numpy(mask))
    library = v1.masked_mean(torch.from_numpy(x), torch.from_numpy(mask))
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
    for found in (last_positions(torch.from_numpy(mask)).numpy(), padding3.last_positions(mask)):
        assert found.tolist() == [2, 4, 3, 4]
    positions = [[0, 1, 2, 2, 2], [0, 0, 0, 1, 2], [0, 0, 1, 2, 2], [0, 1, 2, 3, 4]]
    for found in (positions_of(torch.from_numpy(mask)).numpy(), padding3.positions_of(mask)):
        assert found.tolist() == positions
    assert padded_inputs(torch.from_numpy(mask[[0, 3]])) == padding3.padded_inputs(mask[[0, 3]]) == {}
    for module, given in ((last_positions, torch.zeros(1, 3)), (padding3.last_positions, np.zeros((1, 3)))):
        with pytest.raises(AssertionError, match="nothing but padding"):
            module(given.long() if isinstance(given, torch.Tensor) else given.astype(int))


@pytest.mark.parametrize("limit", [10, 17, 1000])
def test_packing_gives_every_real_token_a_slot_of_its_own(limit: int) -> None:
    """Slots, positions and documents, for padding on any side and rows that fit the limit alone, by pairs, or all."""
    mask = np.concatenate([ATTENTION, [[1, 1, 0] + [0] * 9, [0] * 6 + [1] * 6]])
    mask[1, 10:] = 0  # no row is longer than 10
    ids = integers(5, 97, *mask.shape)
    for packing in (pack_rows(ids, mask, limit), padding3.pack_rows(ids, mask, limit)):
        slots = packing.place[mask == 1]
        assert len(set(slots.tolist())) == mask.sum()
        assert sorted(slots.tolist()) == list(range(len(packing.position_ids)))
        assert packing.position_ids[slots].tolist() == padding3.positions_of(mask)[mask == 1].tolist()
        documents = np.broadcast_to(np.arange(4)[:, None], mask.shape)[mask == 1]
        assert packing.document_ids[slots].tolist() == documents.tolist()
        ends = [(line.start, line.stop) for line in packing.lines]
        assert ends == {10: [(0, 7), (7, 17), (17, 25)], 17: [(0, 17), (17, 25)], 1000: [(0, 25)]}[limit]


def test_lines_are_of_whole_documents_and_about_equally_long() -> None:
    """Without the fair share, a line of 20 would follow two of 100. A document over the limit is refused later, by the model."""
    for module in (padding2, padding3):
        assert [line.stop for line in module._lines(11 * [20], 100)] == [80, 160, 220]
        assert [line.stop for line in module._lines([90, 30, 20, 130, 5], 110)] == [90, 140, 270, 275]


@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
def test_states_of_packed_rows_are_those_of_padded_ones(parity: ParityRecorder, case: str) -> None:
    """Level 2 packs on a CPU and pads on a GPU: the same numbers, and the same as at level 3."""
    _, model, arrays = trio(case)
    ids, mask = integers(5, config_of(case).vocab_size, *ATTENTION.shape), ATTENTION
    with torch.no_grad(), no_grad():
        inputs = torch.from_numpy(ids), torch.from_numpy(mask)
        packed = hidden_states_of_rows(model, *inputs)[mask == 1]
        padded = model.hidden_states(inputs[0], **padded_inputs(inputs[1]))[mask == 1]
        level3 = padding3.hidden_states_of_rows(arrays, ids, mask).data[mask == 1]
        padded3 = arrays.hidden_states(ids, **padding3.padded_inputs(mask)).data[mask == 1]
    for quantity, levels, a, b in (
        ("packed and padded", "v2-v2", packed, padded),
        ("packed and padded", "v3-v3", level3, padded3),
        ("packed", "v2-v3", level3, packed),
    ):
        component = f"hidden_states_of_rows, {case}"
        parity(component=component, quantity=quantity, levels=levels, actual=a, expected=b, tolerance=5e-15)


def rows_that_begin_alike(vocab_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids, attention mask, reply mask) of two prompts with three and two replies, in turn, and of one text alone.

    Two replies begin alike, one ends another's beginning; rows are padded on either side.
    """
    first, second, alone = (integers(seed, vocab_size, n) for seed, n in ((1, 9), (2, 7), (3, 12)))
    long, short = integers(4, vocab_size, 5), integers(5, vocab_size, 3)
    texts = [(first, long), (second, short), (first, np.r_[long[:2], short]), (alone, short), (second, short[:1]), (first, short)]  # fmt: skip
    ids, mask, reply = np.zeros((3, len(texts), 18), np.int64)
    for row, (prompt, text) in enumerate(texts):
        begin = 0 if row % 2 else 17 - len(prompt) - len(text)
        middle, end = begin + len(prompt), begin + len(prompt) + len(text)
        ids[row, begin:end], mask[row, begin:end], reply[row, middle:end] = np.r_[prompt, text], 1, 1
    return ids, mask, reply


def test_what_texts_have_in_common_at_the_beginning_is_packed_once() -> None:
    """Trunks and branches; a limit keeps texts apart, and so does a beginning of less than half of a text."""
    ids, mask, _ = rows_that_begin_alike(97)
    branches = [0] * 9 + [1] * 5 + [2] * 5 + [3] * 3 + [0] * 8 + [1] * 2 + [0] * 15
    for pack in (pack_rows, padding3.pack_rows):
        packing = pack(ids, mask, 1000)
        assert packing.branch_ids is not None
        assert packing.branch_ids.tolist() == branches
        assert packing.document_ids.tolist() == [0] * 22 + [1] * 10 + [2] * 15
        positions = packing.position_ids[packing.place]
        assert (positions == padding3.positions_of(mask))[mask == 1].all()
        packed = np.zeros(47, np.int64)
        packed[packing.place[mask == 1]] = ids[mask == 1]
        assert (packed[packing.place] == ids)[mask == 1].all()
        assert pack(ids, mask, 1000, share=False).branch_ids is None
        # Of three texts of 14, 14 and 12 tokens, two that have 11 in common need 17, and all, which have 9, 22.
        assert set(pack(ids, mask, 19).document_ids.tolist()) == {0, 1, 2, 3}
        half = np.array([[1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 9, 8, 7], [1, 2, 3, 0, 0, 0, 0]])
        assert pack(half[:2], np.ones((2, 7), int), 1000).branch_ids is not None
        assert pack(half[1:], np.ones((2, 7), int), 1000).branch_ids is None


Found = tuple[np.ndarray, dict[str, np.ndarray]]  # states, and every gradient by its parameter's name


def learn_from_rows(
    model: Any,
    arrays: Any,
    ids: np.ndarray,
    mask: np.ndarray | None,
    read: np.ndarray | None,
    kept: np.ndarray,
) -> tuple[Found, Found]:
    """What levels 2 and 3 find for the states at `kept`, be it that only these are read or that all are made."""
    for parameter in model.parameters():
        parameter.grad = None
    arrays.zero_grad()
    inputs = (None if x is None else torch.from_numpy(x) for x in (ids, mask, read))
    ours = hidden_states_of_rows(model, *inputs)
    theirs = padding3.hidden_states_of_rows(arrays, ids, mask, read)
    if read is None:
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


@pytest.mark.parametrize("only_read", [False, True], ids=["all states", "states that are read"])
@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
def test_sharing_beginnings_changes_neither_states_nor_gradients(
    parity: ParityRecorder, monkeypatch: pytest.MonkeyPatch, case: str, only_read: bool
) -> None:
    """Each text as if it stood alone, and a gradient that is the sum over the texts that share."""
    _, model, arrays = trio(case)
    ids, mask, reply = rows_that_begin_alike(config_of(case).vocab_size)
    # Where replies are predicted from, the ends of prompts among them.
    before = np.pad(reply[:, 1:].astype(bool), ((0, 0), (0, 1)))
    read, kept = (before, before) if only_read else (None, mask.astype(bool))
    found = []
    for apart in (False, True):
        for module in (padding2, padding3):
            monkeypatch.setattr(module, "_drops", lambda model, apart=apart: apart)
        found.append(learn_from_rows(model, arrays, ids, mask, read, kept))
    component = f"shared beginnings, {case}, {'some' if only_read else 'all'} states"
    compare_ways(parity, component, *found, tolerance=1e-14)


def test_dropout_keeps_texts_apart() -> None:
    """Shared, they would all lose the same inputs; evaluation shares again."""
    for level, module in ((2, padding2), (3, padding3)):
        model = trio("gpt2")[level - 1]
        model.config = dataclasses.replace(model.config, attention_dropout=0.1)
        assert module._drops(model.train())
        assert not module._drops(model.eval())
        model.config = dataclasses.replace(model.config, attention_dropout=0.0)
        assert not module._drops(model.train())


@pytest.mark.parametrize("padded", [False, True], ids=["whole rows", "padding"])
@pytest.mark.parametrize("case", ["gpt2", "llama GQA"])
def test_states_at_the_positions_that_are_read_are_those_of_all(
    parity: ParityRecorder, case: str, padded: bool
) -> None:
    """The last block skips the others after its attention; states and gradients must not notice."""
    _, model, arrays = trio(case)
    ids, kept = integers(5, config_of(case).vocab_size, *ATTENTION.shape), REPLY.astype(bool)
    mask = ATTENTION if padded else None
    some, every = (learn_from_rows(model, arrays, ids, mask, read, kept) for read in (kept, None))
    component = f"hidden_states_of_rows, some positions, {case}, {'padding' if padded else 'whole rows'}"
    compare_ways(parity, component, some, every, tolerance=5e-15)


def test_training_the_policy_leaves_the_reference_alone() -> None:
    _, model, arrays = trio("gpt2")
    ids, reply = integers(5, 96, 1, 8), np.array([[0, 0, 0, 1, 1, 1, 1, 1]])
    torch_inputs = torch.from_numpy(ids), torch.from_numpy(reply)
    reference, reference3 = v2.frozen_copy(model.train()), v3.frozen_copy(arrays.train())
    before = v2.reply_log_probabilities(reference, *torch_inputs)
    before3 = v3.reply_log_probabilities(reference3, ids, reply).data
    assert not before.requires_grad
    assert not any(module.training for frozen in (reference, reference3) for module in frozen.modules())
    assert reference.lm_head.weight is reference.token_embedding.weight  # tied, as in the policy
    assert reference3.lm_head.weight is reference3.token_embedding.weight
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1
    for parameter in arrays.parameters():
        parameter.data += 0.1
    assert torch.equal(v2.reply_log_probabilities(reference, *torch_inputs), before)
    assert np.array_equal(v3.reply_log_probabilities(reference3, ids, reply).data, before3)
    assert not torch.allclose(v2.reply_log_probabilities(model, *torch_inputs), before)
    assert model.training
    assert all(p.requires_grad for p in [*model.parameters(), *arrays.parameters()])
