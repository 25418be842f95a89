"""The mixture of experts with its derivative by hand: the tokens in the order of their experts, batched products, little kept.

The weight goes into the hidden activations, y_n = Σ_k D_e (w h), so that the outputs of experts are nothing but added up, and the
gradient of a weight is a product of F numbers, dw = h · (D_eᵀ dy), for which no output is kept: only the gates and ups are. Each
expert's gradient is written where it belongs, in one array for all experts. Derivation: models/blocks/mixture_of_experts.md.

A product of a hundred rows is too small for several cores, but a batch of such products is not. Neighbouring experts with about the
same number of tokens are therefore one batch, the shorter ones filled up with rows of zeros.

Level 3: the same over NumPy, one product for each expert.

    expert_mixture(x, weights, experts, gate_up_proj, down_proj)   # as models/blocks/mixture_of_experts.py
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from v2_handwritten.kernels.fused.feed_forward import row_chunks
from v2_handwritten.models.blocks.mixture_of_experts import by_expert

_MOST_FILLING = 1.15  # rows of a batch with those of zeros, over those without


def expert_mixture(
    x: Float[Tensor, "N C"],
    weights: Float[Tensor, "N k"],
    experts: Int[Tensor, "N k"],
    gate_up_proj: Float[Tensor, "E twoF C"],
    down_proj: Float[Tensor, "E C F"],
) -> Float[Tensor, "N C"]:
    """Σ_k weight · SwiGLU_expert(x)"""
    return _ExpertMixture.apply(x, weights, experts, gate_up_proj, down_proj)


class _ExpertMixture(torch.autograd.Function):
    """Of one expert: [g | u] = x Gᵀ, h = silu(g) u, y = (w h) Dᵀ.  With a = dy D:  dw = h · a, and SwiGLU gets dh = w a."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, experts: Tensor, gate_up_proj: Tensor, down_proj: Tensor
    ) -> Tensor:
        rows = _Rows(experts, len(gate_up_proj))
        weight = weights.new_zeros(rows.number, 1).index_copy_(0, rows.of_assignment, weights.view(-1, 1))
        gate_up = rows.products(rows.spread(x), gate_up_proj.mT)
        ctx.save_for_backward(x, weight, gate_up, gate_up_proj, down_proj)
        ctx.rows = rows
        return rows.added_up(rows.products(_weighted_swiglu(gate_up, weight), down_proj.mT))

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, gate_up, gate_up_proj, down_proj = ctx.saved_tensors
        rows, needs = ctx.rows, ctx.needs_input_grad  # frozen experts cost no product
        d_output = rows.spread(d_y)
        hidden, d_gate_up, d_weight = _backward_swiglu(gate_up, weight, rows.products(d_output, down_proj))
        d_x = rows.added_up(rows.products(d_gate_up, gate_up_proj)) if needs[0] else None
        d_weights = d_weight[rows.of_assignment].view(rows.shape)
        d_gate_up_proj = rows.products_by_expert(d_gate_up, rows.spread(x)) if needs[3] else None
        d_down_proj = rows.products_by_expert(d_output, hidden) if needs[4] else None
        return d_x, d_weights, None, d_gate_up_proj, d_down_proj


class _Batch(NamedTuple):
    """Experts of one batched product, and their rows: `height` for each."""

    experts: slice
    rows: slice
    height: int

    def of(self, rows: Tensor) -> Tensor:
        """[rows, C] → [experts, height, C]"""
        return rows[self.rows].view(-1, self.height, rows.shape[1])


class _Rows:
    """A row for each assignment of a token to an expert, in the order of the experts, and rows of zeros between."""

    def __init__(self, experts: Tensor, num_experts: int) -> None:
        order, load = by_expert(experts, num_experts)
        self.shape, self.num_experts, self.batches = experts.shape, num_experts, list(_batches(load))
        self.number = self.batches[-1].rows.stop
        first = [0] * num_experts  # row of each expert
        for batch in self.batches:
            first[batch.experts] = range(batch.rows.start, batch.rows.stop, batch.height)
        before = itertools.accumulate([0, *load])  # without the rows of zeros
        shift = order.new_tensor([row - start for row, start in zip(first, before, strict=False)])
        place = torch.arange(len(order), device=order.device) + shift[experts.flatten()[order]]
        self.of_assignment = torch.empty_like(order).index_copy_(0, order, place)
        self.token = order.new_full((self.number,), -1).index_copy_(0, place, order // experts.shape[1])

    def spread(self, x: Tensor) -> Tensor:
        """[N, C] → the rows; those between are zeros."""
        rows = x[self.token]
        return (
            rows if self.number == len(self.of_assignment) else rows.masked_fill_(self.token[:, None] < 0, 0)
        )

    def added_up(self, rows: Tensor) -> Tensor:
        """The sum of each token's k rows [N, C]; gathered, since on a GPU `index_add_` adds in an order of chance."""
        return rows[self.of_assignment].view(*self.shape, -1).sum(1)

    def products(self, rows: Tensor, matrices: Tensor) -> Tensor:
        """Each row times the matrix [A, B] of its expert."""
        result = rows.new_empty(len(rows), matrices.shape[2])
        for batch in self.batches:
            torch.bmm(batch.of(rows), matrices[batch.experts], out=batch.of(result))
        return result

    def products_by_expert(self, a: Tensor, b: Tensor) -> Tensor:
        """aᵀ b over the rows of each expert [E, A, B]; zero where there are none."""
        result = a.new_empty(self.num_experts, a.shape[1], b.shape[1])
        done = 0
        for batch in self.batches:
            result[done : batch.experts.start].zero_()
            torch.bmm(batch.of(a).mT, batch.of(b), out=result[batch.experts])
            done = batch.experts.stop
        result[done:].zero_()
        return result


def _batches(load: Sequence[int]) -> Iterator[_Batch]:
    """Neighbouring experts together as long as this adds few rows of zeros; those without tokens in none."""
    row = start = 0
    while start < len(load):
        end, height, tokens = start + 1, load[start], load[start]
        while end < len(load) and height and load[end]:
            higher, more = max(height, load[end]), tokens + load[end]
            if higher * (end + 1 - start) > _MOST_FILLING * more:
                break
            end, height, tokens = end + 1, higher, more
        rows = height * (end - start)
        if rows:
            yield _Batch(slice(start, end), slice(row, row + rows), height)
        start, row = end, row + rows


def _weighted_swiglu(gate_up: Tensor, weight: Tensor) -> Tensor:
    """w silu(gate) up"""
    gates, ups = gate_up.chunk(2, dim=-1)
    hidden = gates.new_empty(gates.shape)
    for rows in row_chunks(gates):
        torch.sigmoid(gates[rows], out=hidden[rows]).mul_(gates[rows]).mul_(ups[rows]).mul_(weight[rows])
    return hidden


def _backward_swiglu(gate_up: Tensor, weight: Tensor, d_hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From a = `d_hidden`, which is overwritten: w h again, the gradient of gate and up, and that of the weight, h · a."""
    gates, ups = gate_up.chunk(2, dim=-1)
    hidden, d_gate_up, d_weight = (torch.empty_like(array) for array in (d_hidden, gate_up, weight))
    d_gates, d_ups = d_gate_up.chunk(2, dim=-1)
    one = gate_up.new_ones(())
    for rows in row_chunks(gates):
        s, h, dh = torch.sigmoid(gates[rows]), hidden[rows], d_hidden[rows]
        silu_gate = gates[rows] * s
        torch.mul(silu_gate, ups[rows], out=h)
        torch.sum(h * dh, dim=-1, keepdim=True, out=d_weight[rows])
        h.mul_(weight[rows])
        torch.mul(dh.mul_(weight[rows]), silu_gate, out=d_ups[rows])
        slope = torch.lerp(s, one, silu_gate, out=silu_gate)  # s + silu (1 - s)
        torch.mul(slope.mul_(dh), ups[rows], out=d_gates[rows])
    return hidden, d_gate_up, d_weight
