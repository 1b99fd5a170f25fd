"""Gradients of the indexer's scores of listed entries (formula: ``scores_bwd`` in reference/indexer_loss.py).

With dI the gradient of the scores by slots j of a query's list, 0 where a slot names no entry, k_j the row that it names, and
[.] = 1 where a condition holds, else 0,

    dq_h = w_h Σ_j dI_j [q_h · k_j > 0] k_j,    dw_h = Σ_j dI_j relu(q_h · k_j)
    part of the gradient of row j = dI_j Σ_h w_h [q_h · k_j > 0] q_h.

The parts are written out in bf16, and added up in the order of the queries (``sum_listed`` in kernels/gradient_sums.py).

A block of threads takes one query. As in kernels/indexer_loss.py the producer gathers the rows of each tile of 128 slots, half
of them for each of two consumers. A consumer multiplies them by the query's heads, writes their parts, and sums over its halves
of all tiles; consumer 0 adds the sums of consumer 1 to its own.
"""

from typing import Any, NamedTuple

import tilelang.language as T
from tilelang.layout import make_swizzled_layout

from .build import aligned, build
from .indexer_loss import Block, Config, Shared, Tensors, producer
from .sparse_attention import THREADS, HalfTile
from .sparse_attention_config import BF16, F32, HEADS, I32, KEYS, PANEL
from .sparse_attention_layouts import WARPGROUP, copy_layout


class Results(NamedTuple):
    """What a block writes."""

    q: Any
    weights: Any
    parts: Any


class Exchange(NamedTuple):
    """The shared memory of the consumers; index g is consumer g's."""

    factors: Any  # [g, head, slot]
    stage: Any  # [g]: a panel of the parts on its way out
    acc: Any  # consumer 1's sums for dq
    weights: Any  # and for dw
    factors_ready: Any  # [g]
    sums_ready: Any  # the sums of consumer 1 are written


class Memory(NamedTuple):
    """What both consumers of a block read and write."""

    tensors: Tensors
    shared: Shared
    exchange: Exchange
    results: Results


class Consumer(NamedTuple):
    """A consumer and its registers."""

    g: int
    acc: Any  # the sum for dq
    grad_weights: Any  # the sum for dw
    weights: Any  # of each head
    grads: Any  # dI of the slots of half a tile
    dots: Any
    factors: Any  # dI where a product is positive, 0 elsewhere
    scaled: Any  # the same times the weight of the head
    part: Any  # a panel of the parts
    reduced: Any  # [head]


@T.macro
def compute_factors(cfg, me, exchange):
    """Compute the factors from the products, share those with weights, and add to the sum for dw."""
    for h, j in T.Parallel(HEADS, KEYS):
        me.factors[h, j] = T.if_then_else(me.dots[h, j] > 0, me.grads[j], 0)
    for h, j in T.Parallel(HEADS, KEYS):
        me.scaled[h, j] = T.if_then_else(me.dots[h, j] > 0, me.grads[j] * me.weights[h], 0)
    T.copy(me.scaled, exchange.factors[me.g, :, :])
    for h, j in T.Parallel(HEADS, KEYS):
        me.dots[h, j] = T.if_then_else(me.dots[h, j] > 0, me.dots[h, j] * me.grads[j], 0)
    T.reduce_sum(me.dots, me.reduced, dim=1)
    for h in T.Parallel(HEADS):
        me.grad_weights[h] += me.reduced[h]


@T.macro
def write_parts(me, tile, p, memory):
    """Write panel p of the parts of half a tile, so that whole rows are stored."""
    at, stage, parts = tile.at, memory.exchange.stage, memory.results.parts
    for j, d in T.Parallel(KEYS, PANEL):
        stage[me.g, j, d] = me.part[j, d]
    for j, d in T.Parallel(KEYS, PANEL, loop_layout=copy_layout(PANEL)):
        slot = (2 * tile.t + me.g) * KEYS + j
        if slot < parts.shape[2]:
            parts[at.b, at.s, slot, 0, p * PANEL + d] = stage[me.g, j, d]


@T.macro
def add_tile(cfg, me, tile, memory):
    """Add half a tile to the sums, and write its parts."""
    at, t = tile.at, tile.t
    tensors, shared, exchange = memory.tensors, memory.shared, memory.exchange
    for j in T.Parallel(KEYS):
        slot = (2 * t + me.g) * KEYS + j
        me.grads[j] = T.if_then_else(slot < tensors.out.shape[2], tensors.out[at.b, at.s, slot], 0)
    T.barrier_wait(shared.keys_ready[me.g], t % 2)
    T.fence_proxy_async()
    T.wgmma_gemm(shared.q, shared.keys[me.g, :, :], me.dots, transpose_B=True, clear_accum=True)
    T.wait_wgmma(0)
    T.warpgroup_fence_operand(me.dots, num_regs=HEADS * KEYS // WARPGROUP)
    compute_factors(cfg, me, exchange)
    T.wgmma_gemm(me.factors, shared.keys[me.g, :, :], me.acc)
    T.fence_proxy_async()
    T.barrier_arrive(exchange.factors_ready[me.g])
    T.barrier_wait(exchange.factors_ready[me.g], t % 2)
    for p in T.unroll(cfg.D // PANEL):
        T.wgmma_gemm(
            exchange.factors[me.g, :, :],
            shared.q[:, p * PANEL : (p + 1) * PANEL],
            me.part,
            transpose_A=True,
            clear_accum=True,
        )
        T.wait_wgmma(0)
        T.warpgroup_fence_operand(me.part, num_regs=KEYS * PANEL // WARPGROUP)
        write_parts(me, tile, p, memory)
    T.warpgroup_fence_operand(me.acc, num_regs=HEADS * cfg.D // WARPGROUP)
    T.barrier_arrive(shared.keys_free[me.g])


@T.macro
def share_sums(me, exchange):
    """Hand the sums of consumer 1 to consumer 0."""
    T.copy(me.acc, exchange.acc)
    T.copy(me.grad_weights, exchange.weights)
    T.barrier_arrive(exchange.sums_ready[0])


@T.macro
def write_sums(cfg, me, at, exchange, results):
    """Add the sums of consumer 1, and write dq and dw."""
    T.barrier_wait(exchange.sums_ready[0], 0)
    for h, d in T.Parallel(HEADS, cfg.D):
        me.acc[h, d] = (me.acc[h, d] + exchange.acc[h, d]) * me.weights[h]
    for h, d in T.Parallel(HEADS, cfg.D):
        if h < cfg.H:
            results.q[at.b, at.s, h, d] = me.acc[h, d]
    for h in T.Parallel(HEADS):
        if h < cfg.H:
            results.weights[at.b, at.s, h] = me.grad_weights[h] + exchange.weights[h]


@T.macro
def consumer(cfg, me, at, memory):
    """Go through half g of each tile, and write the results."""
    tensors = memory.tensors
    for h in T.Parallel(HEADS):
        me.weights[h] = T.if_then_else(h < cfg.H, tensors.per_head[0][at.b, at.s, T.min(h, cfg.H - 1)], 0)
    T.fill(me.acc, 0)
    T.fill(me.grad_weights, 0)
    T.barrier_wait(memory.shared.q_ready, 0)
    T.fence_proxy_async()
    for t in T.serial(at.tiles):
        add_tile(cfg, me, HalfTile(at, t, me.g), memory)
    if me.g == 1:
        share_sums(me, memory.exchange)
    else:
        write_sums(cfg, me, at, memory.exchange, memory.results)


@T.macro
def differentiate(cfg, at, tensors, results):
    """Compute what a block writes."""
    q_shared, k_shared = T.alloc_shared((HEADS, cfg.D), BF16), T.alloc_shared((2, KEYS, cfg.D), BF16)
    q_ready = T.alloc_barrier(WARPGROUP)
    keys_ready, keys_free = T.alloc_barrier([WARPGROUP] * 2), T.alloc_barrier([WARPGROUP] * 2)
    shared = Shared(q_shared, k_shared, q_ready, keys_ready, keys_free)
    factors_shared, stage_shared = T.alloc_shared((2, HEADS, KEYS), BF16), T.alloc_shared((2, KEYS, PANEL), BF16)
    T.annotate_layout({stage_shared: make_swizzled_layout(stage_shared)})
    acc_shared, weights_shared = T.alloc_shared((HEADS, cfg.D), F32), T.alloc_shared((HEADS,), F32, scope="shared")
    factors_ready, sums_ready = T.alloc_barrier([WARPGROUP] * 2), T.alloc_barrier([WARPGROUP])
    exchange = Exchange(factors_shared, stage_shared, acc_shared, weights_shared, factors_ready, sums_ready)
    memory = Memory(tensors, shared, exchange, results)
    acc0, acc1 = T.alloc_fragment((HEADS, cfg.D), F32), T.alloc_fragment((HEADS, cfg.D), F32)
    sums0, sums1 = T.alloc_fragment((HEADS,), F32), T.alloc_fragment((HEADS,), F32)
    weights0, weights1 = T.alloc_fragment((HEADS,), F32), T.alloc_fragment((HEADS,), F32)
    grads0, grads1 = T.alloc_fragment((KEYS,), F32), T.alloc_fragment((KEYS,), F32)
    dots0, dots1 = T.alloc_fragment((HEADS, KEYS), F32), T.alloc_fragment((HEADS, KEYS), F32)
    factors0, factors1 = T.alloc_fragment((HEADS, KEYS), BF16), T.alloc_fragment((HEADS, KEYS), BF16)
    scaled0, scaled1 = T.alloc_fragment((HEADS, KEYS), BF16), T.alloc_fragment((HEADS, KEYS), BF16)
    part0, part1 = T.alloc_fragment((KEYS, PANEL), F32), T.alloc_fragment((KEYS, PANEL), F32)
    reduced0, reduced1 = T.alloc_fragment((HEADS,), F32), T.alloc_fragment((HEADS,), F32)
    thread = T.get_thread_binding()
    if thread < WARPGROUP:
        producer(cfg, at, tensors, shared)
    elif thread < 2 * WARPGROUP:
        me = Consumer(0, acc0, sums0, weights0, grads0, dots0, factors0, scaled0, part0, reduced0)
        consumer(cfg, me, at, memory)
    else:
        other = Consumer(1, acc1, sums1, weights1, grads1, dots1, factors1, scaled1, part1, reduced1)
        consumer(cfg, other, at, memory)


def loss_bwd_listed(cfg: Config) -> T.PrimFunc:
    """Write the gradients of q and of the weights, and the parts of that of the keys by slots of the lists."""
    B, S, L, K = T.dynamic("B"), T.dynamic("S"), T.dynamic("T"), T.dynamic("K")

    @T.prim_func
    def loss_bwd_listed(
        grad_scores: T.Tensor((B, S, K), F32),
        q: T.Tensor((B, S, cfg.H, cfg.D), BF16),
        k: T.Tensor((B, L, cfg.D), BF16),
        weights: T.Tensor((B, S, cfg.H), F32),
        indices: T.Tensor((B, S, K), I32),
        grad_q: T.Tensor((B, S, cfg.H, cfg.D), BF16),
        grad_weights: T.Tensor((B, S, cfg.H), F32),
        parts: T.Tensor((B, S, K, 1, cfg.D), BF16),
    ):
        with T.Kernel(S, B, threads=THREADS) as (s, b):
            at = Block(b, s, 0, T.ceildiv(K, 2 * KEYS))
            tensors = Tensors(q, k, indices, (weights,), grad_scores)
            differentiate(cfg, at, tensors, Results(grad_q, grad_weights, parts))

    return loss_bwd_listed


def gradients(grad_scores, q, k, weights, indices):
    """Launch ``loss_bwd_listed`` on CUDA tensors; return the gradients of q and weights, and the parts of that of k."""
    b, s, h, d = q.shape
    grad_q, grad_weights = q.new_empty(q.shape), weights.new_empty(weights.shape)
    parts = q.new_empty(b, s, indices.shape[2], 1, d)
    build(loss_bwd_listed, Config(h, d))(
        *map(aligned, (grad_scores, q, k, weights, indices)), grad_q, grad_weights, parts
    )
    return grad_q, grad_weights, parts
