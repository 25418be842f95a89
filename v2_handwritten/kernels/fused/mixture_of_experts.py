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
_MOST_ROWS = 1024  # of a batch of several experts: a product of so many uses all cores by itself


def expert_mixture(
    x: Float[Tensor, "N C"],
    weights: Float[Tensor, "N k"],
    experts: Int[Tensor, "N k"],
    gate_up_proj: Float[Tensor, "E twoF C"],
    down_proj: Float[Tensor, "E C F"],
) -> Float[Tensor, "N C"]:
    """Σ_k weight · SwiGLU_expert(x)"""
    if not len(x):  # a row without a target
        return x
    return _ExpertMixture.apply(x, weights, experts, gate_up_proj, down_proj)


class _ExpertMixture(torch.autograd.Function):
    """Of one expert: [g | u] = x Gᵀ, h = silu(g) u, y = (w h) Dᵀ.  With a = dy D:  dw = h · a, and SwiGLU gets dh = w a."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, experts: Tensor, gate_up_proj: Tensor, down_proj: Tensor
    ) -> Tensor:
        layout = _Layout(experts, len(gate_up_proj))
        weight = layout.weights(weights)
        gate_up = x.new_empty(layout.number, gate_up_proj.shape[1])
        outputs = x.new_empty(layout.number, x.shape[1])
        for batch in layout.batches:  # one after the other: what is made on the way stays in the cache
            torch.bmm(layout.rows(x, batch), gate_up_proj[batch.experts].mT, out=batch.of(gate_up))
            hidden = _weighted_swiglu(gate_up[batch.rows], weight[batch.rows])
            torch.bmm(batch.split(hidden), down_proj[batch.experts].mT, out=batch.of(outputs))
        ctx.save_for_backward(x, weight, gate_up, gate_up_proj, down_proj)
        ctx.layout = layout
        return layout.added_up(outputs)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, gate_up, gate_up_proj, down_proj = ctx.saved_tensors
        layout, frozen = ctx.layout, not any(ctx.needs_input_grad[3:])  # frozen experts cost no product
        d_x, d_weight = x.new_empty(layout.number, x.shape[1]), torch.empty_like(weight)
        d_gate_up_proj = None if frozen else torch.empty_like(gate_up_proj)
        d_down_proj = None if frozen else torch.empty_like(down_proj)
        for batch in layout.batches:
            d_output = layout.rows(d_y, batch)
            d_hidden = torch.bmm(d_output, down_proj[batch.experts]).flatten(0, 1)
            swiglu = (gate_up[batch.rows], weight[batch.rows], d_hidden, d_weight[batch.rows])
            hidden, d_gate_up = map(batch.split, _backward_swiglu(*swiglu))
            torch.bmm(d_gate_up, gate_up_proj[batch.experts], out=batch.of(d_x))
            if d_gate_up_proj is not None and d_down_proj is not None:
                torch.bmm(d_gate_up.mT, layout.rows(x, batch), out=d_gate_up_proj[batch.experts])
                torch.bmm(d_output.mT, hidden, out=d_down_proj[batch.experts])
        for gradient in (d_gate_up_proj, d_down_proj):
            if gradient is not None:
                gradient[layout.idle] = 0
        d_weights = d_weight[layout.of_assignment].view(layout.shape)
        return layout.added_up(d_x), d_weights, None, d_gate_up_proj, d_down_proj


class _Batch(NamedTuple):
    """Experts of one batched product, and their rows: `height` for each."""

    experts: slice
    rows: slice
    height: int

    def split(self, rows: Tensor) -> Tensor:
        """The rows of this batch by expert: [experts, height, C]."""
        return rows.view(-1, self.height, rows.shape[1])

    def of(self, rows: Tensor) -> Tensor:
        """The part of all rows that belongs to this batch, by expert."""
        return self.split(rows[self.rows])


class _Layout:
    """A row for each assignment of a token to an expert, in the order of the experts, and rows of zeros between."""

    def __init__(self, experts: Tensor, num_experts: int) -> None:
        order, load = by_expert(experts, num_experts)
        self.shape, self.batches = experts.shape, list(_batches(load))
        self.number = self.batches[-1].rows.stop
        self.idle = [expert for expert, tokens in enumerate(load) if not tokens]
        place = torch.arange(len(order), device=order.device)
        if self.number > len(order):
            place += self._shift(load, order)[experts.flatten()[order]]
        self.of_assignment = torch.empty_like(order).index_copy_(0, order, place)
        self.token = order.new_full((self.number,), -1).index_copy_(0, place, order // experts.shape[1])

    def _shift(self, load: Sequence[int], like: Tensor) -> Tensor:
        """How many rows of zeros stand before each expert's rows [E]."""
        first = [0] * len(load)
        for batch in self.batches:
            first[batch.experts] = range(batch.rows.start, batch.rows.stop, batch.height)
        before = itertools.accumulate([0, *load])
        return like.new_tensor([row - start for row, start in zip(first, before, strict=False)])

    def weights(self, weights: Tensor) -> Tensor:
        """The weight of each row [rows, 1]."""
        return weights.new_zeros(self.number, 1).index_copy_(0, self.of_assignment, weights.reshape(-1, 1))

    def rows(self, x: Tensor, batch: _Batch) -> Tensor:
        """The tokens of a batch [experts, height, C]."""
        token = self.token[batch.rows]
        rows = x[token]
        if self.number > len(self.of_assignment):
            rows.masked_fill_(token[:, None] < 0, 0)
        return batch.split(rows)

    def added_up(self, rows: Tensor) -> Tensor:
        """The sum of each token's k rows [N, C]; gathered, since on a GPU `index_add_` adds in an order of chance."""
        return rows[self.of_assignment].view(*self.shape, -1).sum(1)


def _batches(load: Sequence[int]) -> Iterator[_Batch]:
    """Neighbouring experts together as long as this adds few rows of zeros; those without tokens in none."""
    row = start = 0
    while start < len(load):
        end, height, tokens = start + 1, load[start], load[start]
        while end < len(load) and height and load[end]:
            higher, more = max(height, load[end]), tokens + load[end]
            rows = higher * (end + 1 - start)
            if rows > min(_MOST_FILLING * more, _MOST_ROWS):
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


def _backward_swiglu(
    gate_up: Tensor, weight: Tensor, d_hidden: Tensor, d_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """From a = `d_hidden`, which is overwritten: w h again, and the gradient of gate and up; `d_weight` receives h · a."""
    gates, ups = gate_up.chunk(2, dim=-1)
    hidden, d_gate_up = torch.empty_like(d_hidden), torch.empty_like(gate_up)
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
    return hidden, d_gate_up
