"""Gradients of the Lightning Indexer's scores on tensor cores (formula: ``indexer_scores_bwd`` in reference/indexer.py).

With dI the gradient of the scores, 0 where a query does not see an entry, and [.] = 1 where a condition holds, else 0,

    g[t,h] = Σ_j dI[t,j] [q[t,h] · k[j] > 0] k[j],    dq[t,h] = w[t,h] g[t,h],    dw[t,h] = q[t,h] · g[t,h]
    dk[j] = Σ_t Σ_h dI[t,j] w[t,h] [q[t,h] · k[j] > 0] q[t,h].

One kernel computes the gradients of q and w: the rows of a block are pairs (query, head), and it goes through the entries that
they see. The other computes that of k: its rows are entries, and it goes through a split of the pairs; there are splits so
that there are blocks enough to fill a GPU. Both have the same schedule. A block has 256 rows, and goes through the others in
tiles of 64. The warps of a block have three roles.

- The producer copies tiles to shared memory, two in an iteration, and dI beside them.
- Each of two consumers computes the products of its rows with a tile, x yᵀ, puts the factor of y in place of each that is
  positive and 0 in place of the others, and adds factor times y to its sums. It has two blocks of 64 rows, so that the tensor
  cores multiply for one while it computes the factors of the other.

A barrier is passed once in each iteration, so that its phase is the parity of the iteration. No sum depends on the order in
which blocks run.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import tilelang.language as T

from .build import aligned, build

BF16, F32, I32 = "bfloat16", "float32", "int32"
ROWS, ALL_ROWS, TILE = 64, 256, 64  # rows of a product, of a block, of a tile
WARPGROUP, THREADS = 128, 384  # threads of a role, of a block
PRODUCER_REGISTERS, CONSUMER_REGISTERS = 40, 232  # of a thread
BLOCKS, MAX_SPLITS = 264, 8  # blocks that keep a GPU busy, splits of the queries
WORKSPACE = 128 * 2**20  # bytes of the splits' sums
# the kernel itself waits for its copies to shared memory
ASYNC = {"parallel_prefer_async": True, "parallel_async_without_async_commit_wait": True}


@dataclass(frozen=True)
class Config:
    """The operator's H, D and ratio, and into how many splits the queries are cut for the gradient of the keys."""

    H: int = 64
    D: int = 128
    ratio: int = 4
    splits: int = 1

    @property
    def queries(self) -> int:
        """Return how many queries the rows of a block hold."""
        return ALL_ROWS // self.H

    @property
    def tile_queries(self) -> int:
        """Return how many queries a tile holds."""
        return TILE // self.H

    @property
    def panel(self) -> int:
        """Return how many columns of g are multiplied by q at once."""
        return min(self.D, TILE)


class Tensors(NamedTuple):
    """The tensors that are read."""

    grad_out: Any
    q: Any
    k: Any
    weights: Any


class Block(NamedTuple):
    """Where a block works."""

    b: Any  # sequence
    first: Any  # of its queries or of its entries
    offset: Any  # position of the first query of the sequence
    seen: Any  # entries that its last query, or that any query sees
    begin: Any  # the first pair of tiles
    end: Any  # one more than the last


class Barriers(NamedTuple):
    """The barriers of a block, named after what they announce."""

    rows_ready: Any  # [g]: the rows of consumer g are filled, which are blocks 2 g and 2 g + 1
    tile_ready: Any  # [u]: tile u of an iteration is filled
    grads_ready: Any  # [u]: dI of tile u is written, and its weights
    tile_free: Any  # [u]: both may be refilled


class Shared(NamedTuple):
    """The shared memory of a block."""

    rows: Any  # [i]: block i of the rows
    tile: Any  # [u]
    grads: Any  # [u, query, entry]: dI, 0 where the query does not see the entry
    weights: Any  # [u, pair] of tiles of pairs
    barriers: Barriers


class Consumer(NamedTuple):
    """A consumer, which has blocks 2 g and 2 g + 1 of the rows; index i of its registers is block 2 g + i."""

    g: int
    at: Block
    acc: Any  # [i]: the sums
    dots: Any  # products of a block with a tile
    factors: Any  # [i]: of the tile
    shared: Shared


class Kind(NamedTuple):
    """What the schedule leaves open: macros, and the shape and dtype of dI in shared memory for a config."""

    grads: Any
    copy_tile: Any
    load_rows: Any
    compute_factors: Any
    write_rows: Any


@T.macro
def copy_entries(cfg, at, tensors, t, u, shared):
    """Copy tile u of the entries of iteration t, zeros for those that are not seen, and dI of them."""
    entry = (2 * t + u) * TILE
    T.barrier_wait(shared.barriers.tile_free[u], 1 - (t - at.begin) % 2)
    for j, d in T.Parallel(TILE, cfg.D, annotations=ASYNC):
        shared.tile[u, j, d] = T.if_then_else(entry + j < at.seen, tensors.k[at.b, entry + j, d], 0)
    T.cp_async_barrier_noinc(shared.barriers.tile_ready[u])
    for i, j in T.Parallel(cfg.queries, TILE):
        shared.grads[u, i, j] = T.if_then_else(
            at.first + i < tensors.q.shape[1]
            and entry + j < T.min((at.offset + at.first + i + 1) // cfg.ratio, at.seen),
            tensors.grad_out[at.b, at.first + i, entry + j],
            0,
        )
    T.barrier_arrive(shared.barriers.grads_ready[u])


@T.macro
def copy_pairs(cfg, at, tensors, t, u, shared):
    """Copy tile u of the pairs of iteration t, zeros for those that are none, and dI and the weights of them."""
    query = (2 * t + u) * cfg.tile_queries
    T.barrier_wait(shared.barriers.tile_free[u], 1 - (t - at.begin) % 2)
    for n, d in T.Parallel(TILE, cfg.D, annotations=ASYNC):
        shared.tile[u, n, d] = T.if_then_else(
            query + n // cfg.H < tensors.q.shape[1], tensors.q[at.b, query + n // cfg.H, n % cfg.H, d], 0
        )
    T.cp_async_barrier_noinc(shared.barriers.tile_ready[u])
    for n in T.Parallel(TILE):
        shared.weights[u, n] = T.if_then_else(
            query + n // cfg.H < tensors.q.shape[1], tensors.weights[at.b, query + n // cfg.H, n % cfg.H], 0
        )
    for i, j in T.Parallel(cfg.tile_queries, ALL_ROWS):
        shared.grads[u, i, j] = T.if_then_else(
            query + i < tensors.q.shape[1] and at.first + j < T.min((at.offset + query + i + 1) // cfg.ratio, at.seen),
            tensors.grad_out[at.b, query + i, at.first + j],
            0,
        )
    T.barrier_arrive(shared.barriers.grads_ready[u])


@T.macro
def load_pairs(cfg, at, tensors, i, shared):
    """Copy block i of the pairs, zeros for those that are none."""
    for r, d in T.Parallel(ROWS, cfg.D, annotations=ASYNC):
        query = at.first + (i * ROWS + r) // cfg.H
        shared.rows[i, r, d] = T.if_then_else(
            query < tensors.q.shape[1], tensors.q[at.b, query, (i * ROWS + r) % cfg.H, d], 0
        )


@T.macro
def load_entries(cfg, at, tensors, i, shared):
    """Copy block i of the entries, zeros for those that are not seen."""
    for r, d in T.Parallel(ROWS, cfg.D, annotations=ASYNC):
        entry = at.first + i * ROWS + r
        shared.rows[i, r, d] = T.if_then_else(entry < at.seen, tensors.k[at.b, entry, d], 0)


@T.macro
def factors_of_entries(cfg, i, u, shared, dots, factors):
    """Compute the factors of block i: dI where a product is positive, and 0 elsewhere."""
    for r, j in T.Parallel(ROWS, TILE):
        factors[r, j] = T.if_then_else(dots[r, j] > 0, shared.grads[u, (i * ROWS + r) // cfg.H, j], T.bfloat16(0))


@T.macro
def factors_of_pairs(cfg, i, u, shared, dots, factors):
    """Compute the factors of block i: dI times weight where a product is positive, and 0 elsewhere."""
    for r, n in T.Parallel(ROWS, TILE):
        dots[r, n] = T.if_then_else(dots[r, n] > 0, shared.grads[u, n // cfg.H, i * ROWS + r] * shared.weights[u, n], 0)
    T.copy(dots, factors)


@T.macro
def multiply_rows(i, u, dots, shared):
    """Issue the products of block i of the rows with tile u."""
    T.wgmma_gemm(shared.rows[i, :, :], shared.tile[u, :, :], dots, transpose_B=True, clear_accum=True)


@T.macro
def finish_rows(behind, dots):
    """Wait for the product into ``dots``, behind which so many others may be under way."""
    T.wait_wgmma(behind)
    T.warpgroup_fence_operand(dots, num_regs=ROWS * TILE // WARPGROUP)


@T.macro
def add_tile(cfg, me, u, parity, compute_factors):
    """Add the products of the factors with tile u to the sums."""
    T.barrier_wait(me.shared.barriers.tile_ready[u], parity)
    T.fence_proxy_async()
    multiply_rows(2 * me.g, u, me.dots, me.shared)
    T.barrier_wait(me.shared.barriers.grads_ready[u], parity)
    finish_rows(0, me.dots)
    compute_factors(cfg, 2 * me.g, u, me.shared, me.dots, me.factors[0])
    multiply_rows(2 * me.g + 1, u, me.dots, me.shared)
    T.wgmma_gemm(me.factors[0], me.shared.tile[u, :, :], me.acc[0])
    finish_rows(1, me.dots)
    compute_factors(cfg, 2 * me.g + 1, u, me.shared, me.dots, me.factors[1])
    T.wgmma_gemm(me.factors[1], me.shared.tile[u, :, :], me.acc[1])
    T.wait_wgmma(0)
    T.warpgroup_fence_operand(me.acc[0], num_regs=ROWS * cfg.D // WARPGROUP)
    T.warpgroup_fence_operand(me.acc[1], num_regs=ROWS * cfg.D // WARPGROUP)
    T.barrier_arrive(me.shared.barriers.tile_free[u])


@T.macro
def write_pairs(cfg, me, i, tensors, output):
    """Write dq and dw of block 2 g + i of the pairs."""
    products, numbers = T.alloc_fragment((ROWS, cfg.panel), F32), T.alloc_fragment((ROWS,), F32)
    first = (2 * me.g + i) * ROWS
    T.fill(products, 0)
    for p in T.unroll(cfg.D // cfg.panel):
        for r, d in T.Parallel(ROWS, cfg.panel):
            products[r, d] += me.shared.rows[2 * me.g + i, r, p * cfg.panel + d] * me.acc[i][r, p * cfg.panel + d]
    T.reduce_sum(products, numbers, dim=1)
    for r in T.Parallel(ROWS):
        query = me.at.first + (first + r) // cfg.H
        if query < tensors.q.shape[1]:
            output[1][me.at.b, query, (first + r) % cfg.H] = numbers[r]
    for r in T.Parallel(ROWS):
        query = T.min(me.at.first + (first + r) // cfg.H, tensors.q.shape[1] - 1)
        numbers[r] = tensors.weights[me.at.b, query, (first + r) % cfg.H]
    for r, d in T.Parallel(ROWS, cfg.D):
        me.acc[i][r, d] *= numbers[r]
    T.copy(me.acc[i], me.shared.rows[2 * me.g + i, :, :])  # in place of q, so that whole rows are stored
    for r, d in T.Parallel(ROWS, cfg.D):
        query = me.at.first + (first + r) // cfg.H
        if query < tensors.q.shape[1]:
            output[0][me.at.b, query, (first + r) % cfg.H, d] = me.shared.rows[2 * me.g + i, r, d]


@T.macro
def write_entries(cfg, me, i, tensors, output):
    """Write the sums of block 2 g + i of the entries, of a split of the queries."""
    for r, d in T.Parallel(ROWS, cfg.D):
        entry = me.at.first + (2 * me.g + i) * ROWS + r
        if entry < tensors.k.shape[1]:
            output[0][me.at.b, output[1], entry, d] = me.acc[i][r, d]


@T.macro
def producer(cfg, at, tensors, shared, copy_tile):
    """Copy all tiles."""
    T.set_max_nreg(PRODUCER_REGISTERS, 0)
    for t in T.serial(at.begin, at.end):
        copy_tile(cfg, at, tensors, t, 0, shared)
        copy_tile(cfg, at, tensors, t, 1, shared)


@T.macro
def consumer(cfg, me, tensors, kind, output):
    """Sum the products of the factors with all tiles for the rows of a consumer, and write the results."""
    T.set_max_nreg(CONSUMER_REGISTERS, 1)
    kind.load_rows(cfg, me.at, tensors, 2 * me.g, me.shared)
    kind.load_rows(cfg, me.at, tensors, 2 * me.g + 1, me.shared)
    T.cp_async_barrier_noinc(me.shared.barriers.rows_ready[me.g])
    T.fill(me.acc[0], 0)
    T.fill(me.acc[1], 0)
    T.barrier_wait(me.shared.barriers.rows_ready[me.g], 0)
    T.fence_proxy_async()
    for t in T.serial(me.at.begin, me.at.end):
        add_tile(cfg, me, 0, (t - me.at.begin) % 2, kind.compute_factors)
        add_tile(cfg, me, 1, (t - me.at.begin) % 2, kind.compute_factors)
    kind.write_rows(cfg, me, 0, tensors, output)
    kind.write_rows(cfg, me, 1, tensors, output)


@T.macro
def sum_products(cfg, at, tensors, kind, output):
    """Compute what a block writes."""
    rows_shared, tile_shared = T.alloc_shared((4, ROWS, cfg.D), BF16), T.alloc_shared((2, TILE, cfg.D), BF16)
    grad_shared = T.alloc_shared(*kind.grads(cfg), scope="shared")
    weights_shared = T.alloc_shared((2, TILE), F32, scope="shared")
    rows_ready, tile_ready = T.alloc_barrier([WARPGROUP] * 2), T.alloc_barrier([WARPGROUP] * 2)
    grads_ready, tile_free = T.alloc_barrier([WARPGROUP] * 2), T.alloc_barrier([2 * WARPGROUP] * 2)
    barriers = Barriers(rows_ready, tile_ready, grads_ready, tile_free)
    shared = Shared(rows_shared, tile_shared, grad_shared, weights_shared, barriers)
    acc0, acc1 = T.alloc_fragment((ROWS, cfg.D), F32), T.alloc_fragment((ROWS, cfg.D), F32)
    acc2, acc3 = T.alloc_fragment((ROWS, cfg.D), F32), T.alloc_fragment((ROWS, cfg.D), F32)
    dots0, dots1 = T.alloc_fragment((ROWS, TILE), F32), T.alloc_fragment((ROWS, TILE), F32)
    factors0, factors1 = T.alloc_fragment((ROWS, TILE), BF16), T.alloc_fragment((ROWS, TILE), BF16)
    factors2, factors3 = T.alloc_fragment((ROWS, TILE), BF16), T.alloc_fragment((ROWS, TILE), BF16)
    thread = T.get_thread_binding()
    if thread < WARPGROUP:
        producer(cfg, at, tensors, shared, kind.copy_tile)
    elif thread < 2 * WARPGROUP:
        consumer(cfg, Consumer(0, at, (acc0, acc1), dots0, (factors0, factors1), shared), tensors, kind, output)
    else:
        consumer(cfg, Consumer(1, at, (acc2, acc3), dots1, (factors2, factors3), shared), tensors, kind, output)


OVER_ENTRIES = Kind(
    lambda cfg: ((2, cfg.queries, TILE), BF16), copy_entries, load_pairs, factors_of_entries, write_pairs
)
OVER_PAIRS = Kind(
    lambda cfg: ((2, cfg.tile_queries, ALL_ROWS), F32), copy_pairs, load_entries, factors_of_pairs, write_entries
)


def indexer_scores_bwd_q(cfg: Config) -> T.PrimFunc:
    """Write the gradients of q and of the weights."""
    B, S, L = T.dynamic("B"), T.dynamic("S"), T.dynamic("T")

    @T.prim_func
    def indexer_scores_bwd_q(
        grad_out: T.Tensor((B, S, L), F32),
        q: T.Tensor((B, S, cfg.H, cfg.D), BF16),
        k: T.Tensor((B, L, cfg.D), BF16),
        weights: T.Tensor((B, S, cfg.H), F32),
        offset: T.Tensor((B,), I32),
        grad_q: T.Tensor((B, S, cfg.H, cfg.D), BF16),
        grad_weights: T.Tensor((B, S, cfg.H), F32),
    ):
        with T.Kernel(T.ceildiv(S, cfg.queries), B, threads=THREADS) as (x, b):
            first = x * cfg.queries
            seen = T.min((offset[b] + T.min(first + cfg.queries, S)) // cfg.ratio, L)
            at = Block(b, first, offset[b], seen, 0, T.ceildiv(seen, 2 * TILE))
            sum_products(cfg, at, Tensors(grad_out, q, k, weights), OVER_ENTRIES, (grad_q, grad_weights))

    return indexer_scores_bwd_q


def indexer_scores_bwd_k(cfg: Config) -> T.PrimFunc:
    """Write, for each split of the queries, the sum over it of the gradient of the keys."""
    B, S, L = T.dynamic("B"), T.dynamic("S"), T.dynamic("T")
    two_tiles = 2 * cfg.tile_queries

    @T.prim_func
    def indexer_scores_bwd_k(
        grad_out: T.Tensor((B, S, L), F32),
        q: T.Tensor((B, S, cfg.H, cfg.D), BF16),
        k: T.Tensor((B, L, cfg.D), BF16),
        weights: T.Tensor((B, S, cfg.H), F32),
        offset: T.Tensor((B,), I32),
        sums: T.Tensor((B, cfg.splits, L, cfg.D), F32),
    ):
        with T.Kernel(T.ceildiv(L, ALL_ROWS), cfg.splits, B, threads=THREADS) as (x, split, b):
            first, iterations = x * ALL_ROWS, T.ceildiv(S, two_tiles)
            seen = T.min((offset[b] + S) // cfg.ratio, L)
            oldest = T.max(cfg.ratio * (first + 1) - 1 - offset[b], 0)  # query that sees one of the entries
            begin = T.max(iterations * split // cfg.splits, oldest // two_tiles)
            end = T.max(iterations * (split + 1) // cfg.splits, begin)
            at = Block(b, first, offset[b], seen, begin, end)
            sum_products(cfg, at, Tensors(grad_out, q, k, weights), OVER_PAIRS, (sums, split))

    return indexer_scores_bwd_k


def choose(S: int, T: int, H: int, D: int, ratio: int) -> Config:
    """Return the config for a call of these sizes. The batch has no say, so that no result depends on it."""
    splits = min(BLOCKS // max(-(-T // ALL_ROWS), 1), MAX_SPLITS, -(-S // (32 * TILE // H)))
    return Config(H, D, ratio, max(splits, 1))


def scores_bwd(grad_out, q, k, weights, offset, ratio: int):
    """Launch both kernels on CUDA tensors; return the gradients of q, of k in fp32, and of weights.

    The splits' sums of a key are added up in their order, for as many sequences at a time as the workspace holds.
    """
    b, s, h, d = q.shape
    t = k.shape[1]
    cfg = choose(s, t, h, d, ratio)
    inputs = [aligned(x) for x in (grad_out, q, k, weights, offset)]
    grad_q, grad_k, grad_weights = q.new_empty(q.shape), weights.new_empty(k.shape), weights.new_empty(weights.shape)
    build(indexer_scores_bwd_q, Config(h, d, ratio))(*inputs, grad_q, grad_weights)
    sequences = max(WORKSPACE // (4 * cfg.splits * t * d), 1)
    for first in range(0, b, sequences):
        some = slice(first, min(first + sequences, b))
        sums = weights.new_empty((some.stop - first, cfg.splits, t, d))
        build(indexer_scores_bwd_k, cfg)(*(aligned(x[some]) for x in inputs), sums)
        total, *others = sums.unbind(1)
        for other in others:
            total += other
        grad_k[some] = total
    return grad_q, grad_k, grad_weights
