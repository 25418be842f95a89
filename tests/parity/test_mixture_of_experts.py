"""Mixture of experts: both hand-written levels and the library, plain and fused, and what must hold whichever expert is chosen."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from tests.parity.arrays import array
from tests.parity.block_checks import compare_functions, each_kernel
from tests.parity.moe_cases import (
    FAMILIES,
    C,
    F,
    library_block,
    moe_config,
    one_pass,
    our_block,
    without_float32,
)
from tests.parity.recorder import ParityRecorder
from v2_handwritten.kernels import kernel as kernel2
from v2_handwritten.models.blocks import mixture_of_experts as moe2
from v3_numpy_deep.autograd import Tensor as Tensor3
from v3_numpy_deep.autograd.gradcheck import gradcheck
from v3_numpy_deep.autograd.kernels import kernel as kernel3
from v3_numpy_deep.models.blocks import mixture_of_experts as moe3

each_level = pytest.mark.parametrize("level", ["v2", "v3"])
X = array(0, 3, 7, C)


def choices(N: int, E: int, k: int, most: int | None = None) -> np.ndarray:
    """k different experts for each of N tokens, of the first `most`."""
    return np.argsort(array(1, N, most or E), axis=1)[:, :k]


# The experts of each token, and how many experts there are.
DISPATCH: dict[str, tuple[np.ndarray, int]] = {
    "some": (choices(30, 8, 2), 8),
    "experts that no token chose": (choices(9, 8, 2, most=3)[:, ::-1] * 2 + 1, 8),
    "all tokens to one expert": (np.full((9, 1), 2), 4),
    "all tokens to two experts": (np.tile([3, 1], (9, 1)), 4),
    "k = E": (choices(9, 3, 3), 3),
    "k = 1": (choices(9, 5, 1), 5),
    "E = 1": (np.zeros((9, 1), np.int64), 1),
    "N = 1": (choices(1, 8, 2), 8),
    "loads that differ": (np.arange(60)[:, None] ** 2 // 450 + np.array([0, 1]), 9),
}


def operands(case: str) -> list[np.ndarray]:
    """x, weights, gate_up_proj and down_proj."""
    experts, E = DISPATCH[case]
    return [
        array(2, len(experts), C),
        array(3, *experts.shape),
        array(4, E, 2 * F, C, scale=0.4),
        array(5, E, C, F, scale=0.4),
    ]


def mixture(level: str, kernels: str, case: str) -> list[np.ndarray]:
    """Output and gradients of `expert_mixture` of one level."""
    experts, _ = DISPATCH[case]
    direction = array(6, len(experts), C)
    if level == "v2":
        inputs: list[Any] = [torch.from_numpy(a.copy()).requires_grad_() for a in operands(case)]
        version, chosen, direction = (
            kernel2(kernels, moe2.expert_mixture),
            torch.from_numpy(experts.copy()),
            torch.from_numpy(direction),
        )
    else:
        inputs = [Tensor3(a.copy(), requires_grad=True) for a in operands(case)]
        version, chosen = kernel3(kernels, moe3.expert_mixture), experts
    x, weights, *matrices = inputs
    output = version(x, weights, chosen, *matrices)
    output.backward(direction)
    return [np.asarray(value.detach().numpy()) for value in (output,)] + [np.asarray(i.grad) for i in inputs]


def dense_mixture(case: str) -> list[np.ndarray]:
    """Every expert on every token, weighted by 0 where it was not chosen; in torch, differentiated by autograd."""
    experts, E = DISPATCH[case]
    inputs = [torch.from_numpy(a.copy()).requires_grad_() for a in operands(case)]
    x, weights, gate_up_proj, down_proj = inputs
    everyone = torch.zeros(len(experts), E).double().scatter_add(1, torch.from_numpy(experts.copy()), weights)
    gate, up = torch.einsum("nc,efc->nef", x, gate_up_proj).chunk(2, dim=-1)
    output = torch.einsum("ne,nef,ecf->nc", everyone, torch.nn.functional.silu(gate) * up, down_proj)
    output.backward(torch.from_numpy(array(6, len(experts), C)))
    return [output.detach().numpy()] + [np.asarray(i.grad) for i in inputs]


@each_level
@each_kernel
def test_one_token_and_two_experts_by_hand(level: str, kernels: str) -> None:
    """Probabilities .6, .3, .1: the weights of the best two are 2/3 and 1/3. Expert e returns e + 1 (σ(ln 3) = 3/4), so y = 4/3."""
    sizes = {"hidden_size": 4, "moe_intermediate_size": 1, "num_local_experts": 3}
    gate_up, down = torch.zeros(3, 2, 4), torch.zeros(3, 4, 1)
    gate_up[:, 0, 0], gate_up[:, 1, 0] = math.log(3), torch.tensor([1.0, 2, 3])
    down[:, 0, 0] = 1 / (0.75 * math.log(3))
    logits = torch.zeros(3, 4)
    logits[:, 0] = torch.tensor([6.0, 3, 1]).log()
    state = {"gate.weight": logits, "experts.gate_up_proj": gate_up, "experts.down_proj": down}
    found = one_pass(our_block(level, moe_config(**sizes), state, kernels), np.array([[1.0, 0, 0, 0]]))
    np.testing.assert_allclose(found["output"], [[4 / 3, 0, 0, 0]], atol=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
@each_level
@each_kernel
def test_the_block_and_all_its_gradients_equal_the_library(
    parity: ParityRecorder, family: str, level: str, kernels: str
) -> None:
    theirs = library_block(family)
    ours = our_block(level, FAMILIES[family], theirs.state_dict(), kernels)
    with without_float32():
        expected = one_pass(theirs, X)
    found = one_pass(ours, X)
    assert found.keys() == expected.keys()
    pairs = {quantity: (found[quantity], expected[quantity]) for quantity in expected}
    parity.each(
        pairs, component=f"mixture_of_experts, {kernels}, {family}", levels=f"{level}-v1", tolerance=2e-14
    )


@pytest.mark.parametrize("family", FAMILIES)
@each_level
def test_the_router_chooses_and_weighs_as_the_librarys_does(
    parity: ParityRecorder, family: str, level: str
) -> None:
    theirs = library_block(family)
    ours = our_block(level, FAMILIES[family], theirs.state_dict(), "plain")
    x = array(7, 200, C)
    with without_float32(), torch.no_grad():
        logits, weights, experts = (value.numpy() for value in theirs.gate(torch.from_numpy(x)))
    routing = ours.gate(torch.from_numpy(x) if level == "v2" else Tensor3(x))
    found = routing.experts if level == "v3" else routing.experts.numpy()
    # The library's sigmoid router gives its choices in no order.
    order, their_order = np.argsort(found, axis=1), np.argsort(experts, axis=1)
    np.testing.assert_array_equal(
        np.take_along_axis(found, order, 1), np.take_along_axis(experts, their_order, 1)
    )
    sorted_weights = np.take_along_axis(routing.weights.detach().numpy(), order, 1)
    parity.each(
        {
            "logits": (routing.logits, logits),
            "weights": (sorted_weights, np.take_along_axis(weights, their_order, 1)),
        },
        component=f"mixture_of_experts, router, {family}",
        levels=f"{level}-v1",
        tolerance=1e-14,
    )


def balance(level: str) -> Callable[..., Any]:
    """The load-balancing loss of several layers' logits, top 2 of them."""
    moe = moe2 if level == "v2" else moe3
    return lambda **logits: moe.load_balancing_loss(
        [moe.softmax_routing(each, 2, True) for each in logits.values()], 8
    )


def test_the_load_balancing_loss_of_all_layers_equals_the_library(parity: ParityRecorder) -> None:
    inputs = {f"logits {i}": torch.from_numpy(array(i, 50, 8, scale=2.0)) for i in range(3)}
    with without_float32():
        compare_functions(
            parity,
            "mixture_of_experts, load_balancing_loss",
            balance("v2"),
            lambda **logits: load_balancing_loss_func(tuple(logits.values()), 8, top_k=2),
            inputs,
            1e-15,
        )
    ours = {name: Tensor3(x.numpy(), requires_grad=True) for name, x in inputs.items()}
    theirs = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    losses = balance("v3")(**ours), balance("v2")(**theirs)
    for loss in losses:
        (100 * loss).backward()  # errors are measured against 1 at least
    pairs = {f"grad {name}": (ours[name].grad, theirs[name].grad) for name in inputs}
    component = "mixture_of_experts, load_balancing_loss"
    parity.each(pairs | {"loss": losses}, component=component, levels="v2-v3", tolerance=1e-15)


@pytest.mark.parametrize("case", DISPATCH)
@pytest.mark.parametrize(("level", "kernels"), [("v2", "fused"), ("v3", "plain"), ("v3", "fused")])
def test_every_version_gives_the_same_to_the_last_digits(
    parity: ParityRecorder, case: str, level: str, kernels: str
) -> None:
    names = ("output", "grad x", "grad weights", "grad gate_up_proj", "grad down_proj")
    found, expected = mixture(level, kernels, case), mixture("v2", "plain", case)
    parity.each(
        dict(zip(names, zip(found, expected, strict=True), strict=True)),
        component=f"expert_mixture, {kernels}, {case}",
        levels=f"v2-{level}",
        tolerance=1e-14,
    )


@pytest.mark.parametrize("case", DISPATCH)
@each_level
@each_kernel
def test_the_mixture_is_the_sum_over_all_experts_with_zero_weights_elsewhere(
    case: str, level: str, kernels: str
) -> None:
    for found, expected in zip(mixture(level, kernels, case), dense_mixture(case), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("case", ["some", "experts that no token chose", "N = 1"])
@each_level
@each_kernel
def test_an_expert_that_no_token_chose_is_never_computed(
    case: str, level: str, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its matrices are NaN, which no number of zeros would hide; its gradient is 0."""
    experts, E = DISPATCH[case]
    idle = np.setdiff1d(np.arange(E), experts)
    arrays = operands(case)
    for matrices in arrays[2:]:
        matrices[idle] = np.nan
    monkeypatch.setitem(globals(), "operands", lambda case: arrays)
    found = mixture(level, kernels, case)
    assert all(np.isfinite(values).all() for values in found)
    assert all((values[idle] == 0).all() for values in found[3:])


@each_kernel
def test_rows_that_fill_up_a_batch_hold_no_token(kernels: str) -> None:
    """The last token would overflow in the experts that it did not choose, and the one it chose is 0."""
    experts = torch.tensor([0, 1] * 9 + [0, 2])[:, None]  # of the first two, one has a token more
    x, weights, gate_up_proj, down_proj = (
        torch.from_numpy(array(i, *shape))
        for i, shape in enumerate([(20, C), (20, 1), (3, 2 * F, C), (3, C, F)])
    )
    x[-1], gate_up_proj[-1], down_proj[-1] = 1e200, 0, 0
    inputs = [values.requires_grad_() for values in (x, weights, gate_up_proj, down_proj)]
    kernel2(kernels, moe2.expert_mixture)(x, weights, experts, gate_up_proj, down_proj).sum().backward()
    assert all(values.grad.isfinite().all() for values in inputs)


@pytest.mark.parametrize("kernels", ["plain", "fused"])
@pytest.mark.parametrize("case", DISPATCH)
def test_level_3_agrees_with_finite_differences(case: str, kernels: str) -> None:
    experts, _ = DISPATCH[case]

    def function(x: Any, weights: Any, *matrices: Any) -> Any:
        return kernel3(kernels, moe3.expert_mixture)(x, weights, experts, *matrices)

    assert gradcheck(function, *operands(case)) < 1e-7


def test_the_routing_of_level_3_agrees_with_finite_differences() -> None:
    """No choice lies so near another one that a step of 1e-6 would change it."""
    logits, bias = array(3, 6, 8), Tensor3(array(9, 8, scale=0.3))
    for norm in (True, False):
        assert gradcheck(lambda z, norm=norm: moe3.softmax_routing(z, 3, norm).weights, logits) < 1e-7
        assert (
            gradcheck(lambda z, norm=norm: moe3.sigmoid_routing(z, bias, 3, norm, 2.5, 4, 2).weights, logits)
            < 1e-7
        )


@each_level
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_ties_choose_different_experts_of_equal_weight(level: str, kind: str) -> None:
    logits, bias = np.zeros((4, 6)), np.zeros(6)
    moe, tensor = (moe2, torch.from_numpy) if level == "v2" else (moe3, Tensor3)
    if kind == "softmax":
        routing = moe.softmax_routing(tensor(logits), 3, True)
    else:
        routing = moe.sigmoid_routing(tensor(logits), tensor(bias), 3, n_group=3, topk_group=2)
    assert all(len(set(chosen)) == 3 for chosen in np.asarray(routing.experts).tolist())
    np.testing.assert_allclose(routing.weights.detach().numpy(), 1 / 3, rtol=1e-15)


def test_the_bias_moves_towards_equal_loads_and_stays_where_they_are_equal() -> None:
    bias, load = np.array([0.0, 1, 2, 3]), np.array([5, 1, 3, 3])
    wanted = [-0.5, 1.5, 2, 3]
    np.testing.assert_array_equal(
        moe2.updated_bias(torch.from_numpy(bias), torch.from_numpy(load), 0.5), wanted
    )
    np.testing.assert_array_equal(moe3.updated_bias(Tensor3(bias), load, 0.5).data, wanted)


@each_level
def test_the_bias_balances_a_skewed_router_without_a_loss(level: str) -> None:
    """Largest load over mean load falls from above 3 to about 1.1, though the router is never trained."""
    config = moe_config("deepseek_v3", n_shared_experts=0)
    weight = array(1, 8, C, scale=0.2)
    weight[:, 0] += np.linspace(-1, 1, 8)  # the first channel of all tokens is 1: some experts suit everyone
    state = {"gate.weight": weight, "gate.e_score_correction_bias": np.zeros(8)}
    state |= {"experts.gate_up_proj": np.zeros((8, 2 * F, C)), "experts.down_proj": np.zeros((8, C, F))}
    block = our_block(
        level, config, {name: torch.from_numpy(value) for name, value in state.items()}, "fused"
    )
    imbalance = []
    for step in range(100):
        x = array(100 + step, 600, C)
        x[:, 0] = 1
        block(torch.from_numpy(x) if level == "v2" else Tensor3(x))
        load = np.asarray(block.gate.load)
        assert load.sum() == 600 * 2
        imbalance.append(load.max() / load.mean())
        block.update_bias(0.01)
        assert not np.any(block.gate.load)
    assert imbalance[0] > 3
    assert np.mean(imbalance[-20:]) < 1.2


@each_level
def test_the_load_is_counted_in_training_only_and_is_no_part_of_a_checkpoint(level: str) -> None:
    config = FAMILIES["deepseek_v3"]
    block = our_block(level, config, library_block("deepseek_v3").state_dict(), "fused")
    x = torch.from_numpy(X) if level == "v2" else Tensor3(X)
    block.eval()(x)
    assert not np.any(block.gate.load)
    block.train()(x)
    block(x)
    assert np.asarray(block.gate.load).sum() == 2 * 3 * 7 * config.num_experts_per_tok
    assert "gate.load" not in block.state_dict()


@each_level
def test_each_pass_adds_its_routing_to_the_list(level: str) -> None:
    block = our_block(level, FAMILIES["mixtral"], library_block("mixtral").state_dict(), "fused")
    routings: list[Any] = []
    x = torch.from_numpy(X) if level == "v2" else Tensor3(X)
    block(x, routings)
    block(x)
    assert [routing.logits.shape for routing in routings] == [(21, 8)]


@each_kernel
def test_in_mixed_precision_the_router_stays_in_float32(kernels: str) -> None:
    config = FAMILIES["mixtral"]
    block = our_block("v2", config, library_block("mixtral").state_dict(), kernels).float()
    x, routings = torch.from_numpy(X).bfloat16(), []
    expected = block(x.float())
    block.experts.compute_dtype = torch.bfloat16
    found = block(x, routings)
    assert found.dtype == torch.bfloat16
    assert routings[0].logits.dtype == routings[0].weights.dtype == torch.float32
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.02)
    found.sum().backward()
    assert {parameter.grad.dtype for parameter in block.parameters()} == {torch.float32}
