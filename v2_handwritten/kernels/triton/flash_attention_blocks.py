"""The programs of FlashAttention (Dao 2023): what one program computes of the output, of dq, and of dk and dv.

A program is a block of threads of the GPU. It has a few hundred KB of fast memory, reads its rows once, and walks through the blocks of
the other side that the lists of visible_keys.py name. Its place in the grid says which rows are its own:

    forward, query_gradients       (block of queries, head, row of the batch)    walks through blocks of keys
    key_value_gradients            (block of keys, key-value head, row)          walks through the heads that share it, and blocks of queries

t are queries, s keys, d columns; a block is BLOCK rows and D or Dv columns rounded up to a power of 2, and what does not exist is
loaded as 0 and never stored. Scores are in units of log 2, as in kernels/fused/flash_attention.py. Theory: kernels/fused/flash_attention.md.

`no_type_check`: these are no Python functions, whose arguments could be checked; Triton compiles their text.
"""

import math
from typing import no_type_check

import triton
import triton.language as tl

MASKED = tl.constexpr(-1e30)
_NOTHING_YET = tl.constexpr(-5e29)  # below every real score, above every masked one
_LOG2_E = tl.constexpr(math.log2(math.e))


@triton.jit
@no_type_check
def forward(
    q, k, v, output, log_sums, sinks, intervals, is_real, key_blocks, plans,
    q_strides, k_strides, v_strides, output_strides, H, G, T, S, scale,
    SOFTCAP: tl.constexpr, D: tl.constexpr, Dv: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """Algorithm 1: o = Σ 2^(score - m) v / z and L = m + log₂ z, while m, z and o grow key block by key block."""
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    plan = batch % plans  # one for each row of the batch, or one for all
    t = block * BLOCK + tl.arange(0, BLOCK)
    queries = rows_of(q, q_strides, batch, head, t, T, D, BLOCK_D)  # [BLOCK, BLOCK_D]
    near_start, far_start, far_end = intervals_of(intervals + plan * 3 * T, t, T, S)

    o = tl.zeros([BLOCK, BLOCK_DV], tl.float32)
    m = tl.full([BLOCK], _NOTHING_YET, tl.float32)
    z = tl.zeros([BLOCK], tl.float32)
    if sinks is not None:  # a score without a value
        m = tl.zeros([BLOCK], tl.float32) + tl.load(sinks + head).to(tl.float32) * _LOG2_E
        z += 1.0
    blocks = key_blocks + (plan * tl.num_programs(0) + block) * (tl.cdiv(S, BLOCK) + 1)
    for i in range(tl.load(blocks)):
        s = tl.load(blocks + 1 + i) * BLOCK + tl.arange(0, BLOCK)
        keys = rows_of(k, k_strides, batch, head // G, s, S, D, BLOCK_D)
        values = rows_of(v, v_strides, batch, head // G, s, S, Dv, BLOCK_DV)

        scores, _ = scores_of(queries, keys, scale, SOFTCAP)
        seen = visible(t, s, near_start, far_start, far_end, is_real, plan, T, S)
        scores = tl.where(seen, scores, MASKED)
        new_m = tl.maximum(m, tl.max(scores, 1))
        weights = tl.exp2(scores - new_m[:, None])
        shrink = tl.exp2(m - new_m)
        z = z * shrink + tl.sum(weights, 1)
        o = tl.dot(weights.to(values.dtype), values, o * shrink[:, None], input_precision="ieee")
        m = new_m
    z = tl.where(z == 0, 1.0, z)  # a query without any key

    store_rows(o / z[:, None], output, output_strides, batch, head, t, T, Dv, BLOCK_DV)
    tl.store(log_sums + (batch * H + head) * T + t, m + tl.log2(z), mask=t < T)


@triton.jit
@no_type_check
def query_gradients(
    q, k, v, output, d_output, log_sums, delta, d_q, intervals, is_real, key_blocks, plans,
    q_strides, k_strides, v_strides, output_strides, d_output_strides, d_q_strides, H, G, T, S, scale,
    SOFTCAP: tl.constexpr, D: tl.constexpr, Dv: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """dq = Σ dS k / √D. Before that δ = Σ do o over Dv, which `key_value_gradients` reads: this program has do and o at hand."""
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    plan = batch % plans
    t = block * BLOCK + tl.arange(0, BLOCK)
    queries = rows_of(q, q_strides, batch, head, t, T, D, BLOCK_D)
    d_o = rows_of(d_output, d_output_strides, batch, head, t, T, Dv, BLOCK_DV)
    o = rows_of(output, output_strides, batch, head, t, T, Dv, BLOCK_DV)
    row = (batch * H + head) * T + t
    row_delta = tl.sum(d_o.to(tl.float32) * o.to(tl.float32), 1)
    tl.store(delta + row, row_delta, mask=t < T)
    L = tl.load(log_sums + row, mask=t < T, other=0.0)
    near_start, far_start, far_end = intervals_of(intervals + plan * 3 * T, t, T, S)

    d_queries = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    blocks = key_blocks + (plan * tl.num_programs(0) + block) * (tl.cdiv(S, BLOCK) + 1)
    for i in range(tl.load(blocks)):
        s = tl.load(blocks + 1 + i) * BLOCK + tl.arange(0, BLOCK)
        keys = rows_of(k, k_strides, batch, head // G, s, S, D, BLOCK_D)
        values = rows_of(v, v_strides, batch, head // G, s, S, Dv, BLOCK_DV)

        scores, slope = scores_of(queries, keys, scale, SOFTCAP)
        seen = visible(t, s, near_start, far_start, far_end, is_real, plan, T, S)
        P = tl.exp2(tl.where(seen, scores, MASKED) - L[:, None])
        d_P = tl.dot(d_o, tl.trans(values), input_precision="ieee")
        d_S = P * (d_P - row_delta[:, None]) * slope
        d_queries = tl.dot(d_S.to(keys.dtype), keys, d_queries, input_precision="ieee")

    store_rows(d_queries * scale, d_q, d_q_strides, batch, head, t, T, D, BLOCK_D)


@triton.jit
@no_type_check
def key_value_gradients(
    q, k, v, d_output, log_sums, delta, d_k, d_v, intervals, is_real, query_blocks, plans,
    q_strides, k_strides, v_strides, d_output_strides, d_k_strides, d_v_strides, H, G, T, S, scale,
    SOFTCAP: tl.constexpr, D: tl.constexpr, Dv: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """dv = Σ Pᵀ do and dk = Σ dSᵀ q / √D, over all queries of the heads that share these keys: nobody else adds to them."""
    block, kv_head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    plan = batch % plans
    s = block * BLOCK + tl.arange(0, BLOCK)
    keys = rows_of(k, k_strides, batch, kv_head, s, S, D, BLOCK_D)
    values = rows_of(v, v_strides, batch, kv_head, s, S, Dv, BLOCK_DV)

    d_keys = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    d_values = tl.zeros([BLOCK, BLOCK_DV], tl.float32)
    blocks = query_blocks + (plan * tl.num_programs(0) + block) * (tl.cdiv(T, BLOCK) + 1)
    count = tl.load(blocks)
    for i in range(count * G):  # the blocks for the first head, then for the next one
        head = kv_head * G + i // count
        t = tl.load(blocks + 1 + i % count) * BLOCK + tl.arange(0, BLOCK)
        queries = rows_of(q, q_strides, batch, head, t, T, D, BLOCK_D)
        d_o = rows_of(d_output, d_output_strides, batch, head, t, T, Dv, BLOCK_DV)
        row = (batch * H + head) * T + t
        L = tl.load(log_sums + row, mask=t < T, other=0.0)
        row_delta = tl.load(delta + row, mask=t < T, other=0.0)
        near_start, far_start, far_end = intervals_of(intervals + plan * 3 * T, t, T, S)

        scores, slope = scores_of(queries, keys, scale, SOFTCAP)
        seen = visible(t, s, near_start, far_start, far_end, is_real, plan, T, S)
        P = tl.exp2(tl.where(seen, scores, MASKED) - L[:, None])
        d_values = tl.dot(tl.trans(P.to(d_o.dtype)), d_o, d_values, input_precision="ieee")
        d_P = tl.dot(d_o, tl.trans(values), input_precision="ieee")
        d_S = P * (d_P - row_delta[:, None]) * slope
        d_keys = tl.dot(tl.trans(d_S.to(queries.dtype)), queries, d_keys, input_precision="ieee")

    store_rows(d_keys * scale, d_k, d_k_strides, batch, kv_head, s, S, D, BLOCK_D)
    store_rows(d_values, d_v, d_v_strides, batch, kv_head, s, S, Dv, BLOCK_DV)


@triton.jit
@no_type_check
def rows_of(x, strides, batch, head, rows, length, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """x[batch, head, rows] as [BLOCK, BLOCK_D], with 0 beyond `length` rows and D columns."""
    d = tl.arange(0, BLOCK_D)
    where = x + batch * strides[0] + head * strides[1] + rows[:, None] * strides[2] + d[None, :]
    return tl.load(where, mask=(rows[:, None] < length) & (d[None, :] < D), other=0.0)


@triton.jit
@no_type_check
def store_rows(block, x, strides, batch, head, rows, length, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """The inverse: x[batch, head, rows] = block, where x has such rows and columns."""
    d = tl.arange(0, BLOCK_D)
    where = x + batch * strides[0] + head * strides[1] + rows[:, None] * strides[2] + d[None, :]
    tl.store(where, block.to(x.dtype.element_ty), mask=(rows[:, None] < length) & (d[None, :] < D))


@triton.jit
@no_type_check
def intervals_of(intervals, t, T, S):
    """near_start, far_start and far_end of the queries t; beyond the last one they are empty."""
    near_start = tl.load(intervals + t, mask=t < T, other=S)
    far_start = tl.load(intervals + T + t, mask=t < T, other=S)
    far_end = tl.load(intervals + 2 * T + t, mask=t < T, other=0)
    return near_start, far_start, far_end


@triton.jit
@no_type_check
def visible(t, s, near_start, far_start, far_end, is_real, plan, T, S):
    """Whether each query sees each key: [queries, keys]. Query t stands in column t + S - T, behind the keys of the past."""
    near = (s[None, :] >= near_start[:, None]) & (s[None, :] <= t[:, None] + S - T)
    far = (s[None, :] >= far_start[:, None]) & (s[None, :] < far_end[:, None])
    is_key = s < S
    if is_real is not None:
        is_key = tl.load(is_real + plan * S + s, mask=is_key, other=False)
    return (near | far) & is_key[None, :]


@triton.jit
@no_type_check
def scores_of(queries, keys, scale, SOFTCAP: tl.constexpr):
    """log₂e q kᵀ / √D [queries, keys], soft-capped as c tanh(x/c), and the derivative of the cap, 1 - tanh²."""
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
    slope = 1.0
    if SOFTCAP > 0:
        tanh = 2 * tl.sigmoid(2 / SOFTCAP * scores) - 1
        scores = SOFTCAP * tanh
        slope = 1 - tanh * tanh
    return scores * _LOG2_E, slope
