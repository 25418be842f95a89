"""FlashAttention on a GPU: the programs of flash_attention_blocks.py as one differentiable function.

Dao et al. 2022; Dao 2023 (FlashAttention-2), algorithms 1 and 2. The same function in torch, with the derivation:
kernels/fused/flash_attention.py. Here each program keeps its block of scores in the GPU's fast memory, where torch would write each
product to the slow one. Theory: kernels/fused/flash_attention.md.

    flash_attention(q, k, v, AttentionMask(T, S, "cuda"))
"""

import math
from typing import Any

import torch
import triton
from jaxtyping import Float
from torch import Tensor

from v2_handwritten.kernels.triton import flash_attention_blocks as blocks
from v2_handwritten.kernels.triton.visible_keys import PATTERNS, VisibleKeys, visible_keys
from v2_handwritten.models.blocks.attention_mask import AttentionMask

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_WIDEST_HEAD = 256  # a block of it still fits the fast memory
STAGES = 2  # while a program computes one block, the next one is on its way


def covers(q: Float[Tensor, "B H T D"], v: Float[Tensor, "B K S Dv"], mask: AttentionMask) -> bool:
    """Whether there is a program for this case. For float64, strided patterns and branches that share a prefix there is none."""
    is_interval = mask.pattern.kind in PATTERNS and (mask.packing is None or mask.packing.branch_ids is None)
    return is_interval and q.dtype in _DTYPES and max(q.shape[-1], v.shape[-1]) <= _WIDEST_HEAD


def flash_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B K S D"],
    v: Float[Tensor, "B K S Dv"],
    mask: AttentionMask,
    sinks: Float[Tensor, "H"] | None = None,
    softcap: float | None = None,
) -> Float[Tensor, "B H T Dv"]:
    """`causal_attention` of models/blocks/attention.py, without dropout; 0 for queries without keys. `covers` must hold."""
    block = block_size(q, v)
    plan = f"visible keys, {block}"
    if plan not in mask.plans:  # the first layer plans for all
        mask.plans[plan] = visible_keys(mask, block)
    with torch.cuda.device_of(q):  # Triton starts its programs on the current device
        return _FlashAttention.apply(q, k, v, sinks, mask.plans[plan], block, softcap or 0.0)


def block_size(q: Tensor, v: Tensor) -> int:
    """Queries, and keys, in a block: fewer where rows are long, so that the few blocks a program holds fit 99 KB of fast memory."""
    row_bytes = padded_size(max(q.shape[-1], v.shape[-1])) * q.element_size()
    return max(16, min(64, 2**14 // row_bytes))


class _FlashAttention(torch.autograd.Function):
    """The programs, their grids, and what is kept between them: the output and L = m + log₂ z, one number a query."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sinks: Tensor | None,
        plan: VisibleKeys,
        block: int,
        softcap: float,
    ) -> Tensor:
        q, k, v = (_with_adjacent_columns(x) for x in (q, k, v))
        B, H, T, D = q.shape
        K, S, Dv = v.shape[1:]
        output = _by_position(q, B, H, T, Dv)
        log_sums = torch.empty(B, H, T, dtype=torch.float32, device=q.device)
        sizes = (H, H // K, T, S, 1 / math.sqrt(D), softcap, D, Dv, block, padded_size(D), padded_size(Dv))
        blocks.forward[triton.cdiv(T, block), H, B](
            q, k, v, output, log_sums, sinks, plan.intervals, plan.is_real, plan.key_blocks, len(plan.intervals),
            *(x.stride() for x in (q, k, v, output)), *sizes, num_stages=STAGES,
        )  # fmt: skip
        ctx.save_for_backward(q, k, v, sinks, output, log_sums)
        ctx.plan, ctx.block, ctx.sizes = plan, block, sizes
        return output

    @staticmethod
    def backward(
        ctx: Any, d_output: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None, None, None]:
        q, k, v, sinks, output, log_sums = ctx.saved_tensors
        plan, block, sizes = ctx.plan, ctx.block, ctx.sizes
        B, H, T, D = q.shape
        K, S, Dv = v.shape[1:]
        d_output = _with_adjacent_columns(d_output)
        d_q, d_k, d_v = _by_position(q, B, H, T, D), _by_position(k, B, K, S, D), _by_position(v, B, K, S, Dv)
        delta = torch.empty_like(log_sums)
        blocks.query_gradients[triton.cdiv(T, block), H, B](
            q, k, v, output, d_output, log_sums, delta, d_q,
            plan.intervals, plan.is_real, plan.key_blocks, len(plan.intervals),
            *(x.stride() for x in (q, k, v, output, d_output, d_q)), *sizes, num_stages=STAGES,
        )  # fmt: skip
        blocks.key_value_gradients[triton.cdiv(S, block), K, B](
            q, k, v, d_output, log_sums, delta, d_k, d_v,
            plan.intervals, plan.is_real, plan.query_blocks, len(plan.intervals),
            *(x.stride() for x in (q, k, v, d_output, d_k, d_v)), *sizes, num_stages=STAGES,
        )  # fmt: skip
        d_sinks = None
        if sinks is not None:  # the gradient of a score without a value: -P δ
            P = torch.exp2(sinks.view(H, 1) * math.log2(math.e) - log_sums)
            d_sinks = -(P * delta).sum((0, 2)).to(sinks.dtype)
        return d_q, d_k, d_v, d_sinks, None, None, None


def _by_position(like: Tensor, B: int, H: int, T: int, D: int) -> Float[Tensor, "B H T D"]:
    """An empty tensor whose heads stand beside each other in memory, as the projections read and write them."""
    return like.new_empty(B, T, H, D).transpose(1, 2)


def _with_adjacent_columns(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def padded_size(D: int) -> int:
    """A power of 2, at least the 16 that the GPU's matrix units take."""
    return max(16, triton.next_power_of_2(D))
