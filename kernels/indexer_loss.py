"""The loss of the Lightning Indexer over listed entries, on tensor cores (formula: reference/indexer_loss.py).

Two kernels reduce products with the listed entries over the heads, for each query and slot j of its list:

    loss_teacher:  log Σ_h exp(scale q_h · kv_j - L_h),  L_h = log(exp lse_h + exp sink_h),  for each 64 of attention's heads
    loss_student:  I_j = Σ_h w_h relu(q_h · k_j)

They write -inf for a slot that names no entry; kernels/indexer_loss_rows.py goes on from there.

Both have one schedule. A block of threads takes one query and up to 64 heads. It goes through the list in tiles of
128 slots, half of a tile for each of two consumers. The producer gathers the rows of each half to shared memory; a row that is
none becomes zeros. A consumer computes k qᵀ, whose rows are slots and whose columns are heads, and reduces over the columns. A
barrier is passed once in each iteration, so that its phase is the parity of the iteration.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import tilelang.language as T

from .build import aligned, build
from .indexer import MAX_NAN
from .indexer_loss_rows import LOWEST
from .sparse_attention import ASYNC, EXP2, THREADS, HalfTile, exp2
from .sparse_attention_config import BF16, F32, HEADS, I32, KEYS, LOG2E, PANEL
from .sparse_attention_layouts import WARPGROUP, copy_layout, row_layout

LN2 = 1 / LOG2E


@dataclass(frozen=True)
class Config:
    """The heads and columns, a multiple of 64, of the vectors that are multiplied; the scale counts for the teacher only."""

    H: int = 64
    D: int = 128
    scale: float = 1.0

    @property
    def head_blocks(self) -> int:
        """Return how many blocks share the heads of a query."""
        return -(-self.H // HEADS)

    @property
    def blocks(self) -> int:
        """Return how many blocks an SM is to hold, by its shared memory."""
        return 2 if self.D <= 256 else 1


class Block(NamedTuple):
    """Where a block works."""

    b: Any  # sequence
    s: Any  # query
    heads: Any  # which block of heads of the query
    tiles: Any  # of the list


class Shared(NamedTuple):
    """The shared memory of a block; index g is half g of a tile, which is consumer g's."""

    q: Any
    keys: Any  # [g]
    q_ready: Any
    keys_ready: Any  # [g]: the rows of half g are filled
    keys_free: Any  # [g]: they may be refilled


class Tensors(NamedTuple):
    """The tensors of a block: queries, rows that are listed, lists, numbers of each head, results."""

    q: Any
    rows: Any
    indices: Any
    per_head: Any
    out: Any


class Kind(NamedTuple):
    """What the schedule leaves open, as macros."""

    load_factor: Any
    reduce: Any


class Consumer(NamedTuple):
    """A consumer and its registers; a factor is a number of each head."""

    g: int
    dots: Any
    factor: Any
    reduced: Any  # [slot]
    largest: Any  # [slot]


@T.macro
def gather(cfg, tile, tensors, rows, shared):
    """Copy the rows that half g of a tile names, once its buffer is free."""
    at, g = tile.at, tile.g
    slot = (2 * tile.t + g) * KEYS
    for j in T.Parallel(KEYS):
        rows[j] = T.if_then_else(slot + j < tensors.indices.shape[2], tensors.indices[at.b, at.s, slot + j], -1)
    T.barrier_wait(shared.keys_free[g], 1 - tile.t % 2)
    for p in T.unroll(cfg.D // PANEL):
        for j, d in T.Parallel(KEYS, PANEL, loop_layout=copy_layout(PANEL), annotations=ASYNC):
            shared.keys[g, j, p * PANEL + d] = T.if_then_else(
                rows[j] >= 0 and rows[j] < tensors.rows.shape[1], tensors.rows[at.b, rows[j], p * PANEL + d], 0
            )
    T.cp_async_barrier_noinc(shared.keys_ready[g])


@T.macro
def producer(cfg, at, tensors, shared):
    """Copy the heads of the query, zeros for those that are none, and gather the rows of all tiles."""
    rows = T.alloc_fragment((KEYS,), I32)
    T.annotate_layout({rows: row_layout()})
    for p in T.unroll(cfg.D // PANEL):
        for h, d in T.Parallel(HEADS, PANEL, loop_layout=copy_layout(PANEL), annotations=ASYNC):
            shared.q[h, p * PANEL + d] = T.if_then_else(
                at.heads * HEADS + h < cfg.H, tensors.q[at.b, at.s, at.heads * HEADS + h, p * PANEL + d], 0
            )
    T.cp_async_barrier_noinc(shared.q_ready)
    for t in T.serial(at.tiles):
        gather(cfg, HalfTile(at, t, 0), tensors, rows, shared)
        gather(cfg, HalfTile(at, t, 1), tensors, rows, shared)


@T.macro
def load_lse(cfg, at, per_head, factor):
    """Compute log2 e L of each head: +inf for a head that is none, so that it has no weight."""
    sink, lse = per_head
    for h in T.Parallel(HEADS):
        head = T.min(at.heads * HEADS + h, cfg.H - 1)
        high, low = T.max(lse[at.b, at.s, head], sink[head]), T.min(lse[at.b, at.s, head], sink[head])
        factor[h] = T.if_then_else(
            at.heads * HEADS + h < cfg.H and high < T.infinity(F32),
            (high + T.log(1 + T.exp2((low - high) * LOG2E))) * LOG2E,
            T.infinity(F32),
        )


@T.macro
def reduce_teacher(cfg, me):
    """Compute log Σ exp(scale dot - L) over the heads."""
    for j, h in T.Parallel(KEYS, HEADS):
        me.dots[j, h] = me.dots[j, h] * (cfg.scale * LOG2E) - me.factor[h]
    T.fill(me.largest, LOWEST)
    T.reduce_max(me.dots, me.largest, dim=1, clear=False)
    for j, h in T.Parallel(KEYS, HEADS):
        me.dots[j, h] = exp2(me.dots[j, h] - me.largest[j])
    T.reduce_sum(me.dots, me.reduced, dim=1)
    for j in T.Parallel(KEYS):
        me.reduced[j] = me.largest[j] * LN2 + T.log(me.reduced[j])


@T.macro
def load_weights(cfg, at, per_head, factor):
    """Load the weight of each head."""
    for h in T.Parallel(HEADS):
        head = T.min(at.heads * HEADS + h, cfg.H - 1)
        factor[h] = T.if_then_else(at.heads * HEADS + h < cfg.H, per_head[0][at.b, at.s, head], 0)


@T.macro
def reduce_student(cfg, me):
    """Compute Σ w relu(dot) over the heads."""
    for j, h in T.Parallel(KEYS, HEADS):
        me.dots[j, h] = T.call_extern(F32, "max_nan", me.dots[j, h], T.float32(0)) * me.factor[h]
    T.reduce_sum(me.dots, me.reduced, dim=1)


@T.macro
def consumer(cfg, me, at, tensors, shared, kind):
    """Reduce the products of half g of each tile over the heads, and write the results."""
    kind.load_factor(cfg, at, tensors.per_head, me.factor)
    T.barrier_wait(shared.q_ready, 0)
    T.fence_proxy_async()
    for t in T.serial(at.tiles):
        T.barrier_wait(shared.keys_ready[me.g], t % 2)
        T.fence_proxy_async()
        T.wgmma_gemm(shared.keys[me.g, :, :], shared.q, me.dots, transpose_B=True, clear_accum=True)
        T.wait_wgmma(0)
        T.warpgroup_fence_operand(me.dots, num_regs=KEYS * HEADS // WARPGROUP)
        T.barrier_arrive(shared.keys_free[me.g])
        kind.reduce(cfg, me)
        for j in T.Parallel(KEYS):
            slot = (2 * t + me.g) * KEYS + j
            if slot < tensors.indices.shape[2]:
                named = tensors.indices[at.b, at.s, slot]
                tensors.out[at.b, at.s, at.heads, slot] = T.if_then_else(
                    named >= 0 and named < tensors.rows.shape[1], me.reduced[j], -T.infinity(F32)
                )


@T.macro
def reduce_products(cfg, at, tensors, kind):
    """Compute what a block writes: a number for each slot of a query's list, reduced over some of its heads."""
    T.annotate_min_blocks_per_sm(cfg.blocks)
    q_shared, k_shared = T.alloc_shared((HEADS, cfg.D), BF16), T.alloc_shared((2, KEYS, cfg.D), BF16)
    q_ready = T.alloc_barrier(WARPGROUP)
    keys_ready, keys_free = T.alloc_barrier([WARPGROUP] * 2), T.alloc_barrier([WARPGROUP] * 2)
    shared = Shared(q_shared, k_shared, q_ready, keys_ready, keys_free)
    dots0, dots1 = T.alloc_fragment((KEYS, HEADS), F32), T.alloc_fragment((KEYS, HEADS), F32)
    factor0, factor1 = T.alloc_fragment((HEADS,), F32), T.alloc_fragment((HEADS,), F32)
    reduced0, reduced1 = T.alloc_fragment((KEYS,), F32), T.alloc_fragment((KEYS,), F32)
    largest0, largest1 = T.alloc_fragment((KEYS,), F32), T.alloc_fragment((KEYS,), F32)
    thread = T.get_thread_binding()
    if thread < WARPGROUP:
        producer(cfg, at, tensors, shared)
    elif thread < 2 * WARPGROUP:
        consumer(cfg, Consumer(0, dots0, factor0, reduced0, largest0), at, tensors, shared, kind)
    else:
        consumer(cfg, Consumer(1, dots1, factor1, reduced1, largest1), at, tensors, shared, kind)


TEACHER, STUDENT = Kind(load_lse, reduce_teacher), Kind(load_weights, reduce_student)


def loss_teacher(cfg: Config) -> T.PrimFunc:
    """Write the logarithm of what the heads of a block weigh each listed entry with."""
    B, S, L, K = T.dynamic("B"), T.dynamic("S"), T.dynamic("T"), T.dynamic("K")

    @T.prim_func
    def loss_teacher(
        core_q: T.Tensor((B, S, cfg.H, cfg.D), BF16),
        compressed_kv: T.Tensor((B, L, cfg.D), BF16),
        indices: T.Tensor((B, S, K), I32),
        sink: T.Tensor((cfg.H,), F32),
        lse: T.Tensor((B, S, cfg.H), F32),
        log_mass: T.Tensor((B, S, cfg.head_blocks, K), F32),
    ):
        with T.Kernel(S * cfg.head_blocks, B, threads=THREADS, prelude=EXP2) as (x, b):
            at = Block(b, x // cfg.head_blocks, x % cfg.head_blocks, T.ceildiv(K, 2 * KEYS))
            reduce_products(cfg, at, Tensors(core_q, compressed_kv, indices, (sink, lse), log_mass), TEACHER)

    return loss_teacher


def loss_student(cfg: Config) -> T.PrimFunc:
    """Write the indexer's score of each listed entry."""
    B, S, L, K = T.dynamic("B"), T.dynamic("S"), T.dynamic("T"), T.dynamic("K")

    @T.prim_func
    def loss_student(
        q: T.Tensor((B, S, cfg.H, cfg.D), BF16),
        k: T.Tensor((B, L, cfg.D), BF16),
        weights: T.Tensor((B, S, cfg.H), F32),
        indices: T.Tensor((B, S, K), I32),
        scores: T.Tensor((B, S, 1, K), F32),
    ):
        with T.Kernel(S, B, threads=THREADS, prelude=MAX_NAN) as (s, b):
            at = Block(b, s, 0, T.ceildiv(K, 2 * KEYS))
            reduce_products(cfg, at, Tensors(q, k, indices, (weights,), scores), STUDENT)

    return loss_student


def log_masses(core_q, compressed_kv, indices, sink, lse, scale: float):
    """Launch ``loss_teacher`` on CUDA tensors; return what it writes, [B, S, blocks of heads, K]."""
    b, s, h, d = core_q.shape
    cfg = Config(h, d, scale)
    log_mass = sink.new_empty(b, s, cfg.head_blocks, indices.shape[2])
    build(loss_teacher, cfg)(*map(aligned, (core_q, compressed_kv, indices, sink, lse)), log_mass)
    return log_mass


def listed_scores(q, k, weights, indices):
    """Launch ``loss_student`` on CUDA tensors; return what it writes, [B, S, 1, K]."""
    b, s, h, d = q.shape
    scores = weights.new_empty(b, s, 1, indices.shape[2])
    build(loss_student, Config(h, d))(*map(aligned, (q, k, weights, indices)), scores)
    return scores
