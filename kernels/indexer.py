"""Lightning Indexer scores on tensor cores (formula: reference/indexer.py).

A block of threads takes a few queries, which are 128 rows of q over all their heads, and a chunk of the entries. The keys of
the chunk stream through shared memory. In the product k qᵀ the rows are entries and the columns are pairs (query, head).
A tensor core's result gives a lane 2 of every 8 columns. Each lane sums relu times weight over its own columns, and the
sums of four lanes are added in shared memory.

Most chunks are seen whole by all queries of the block, and are swept without a comparison. A chunk that no query sees is
only filled with -inf. No score depends on how queries and entries are cut.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import tilelang.language as T

from .build import Launch, aligned, build, planned

F32 = "float32"
COLUMNS = 128  # of a product: queries times heads
LANES, PAIR = 4, 2  # of every 8 columns of a tensor core's result, each of 4 lanes holds 2
# fmaxf(a, b) drops a NaN; this keeps it, as torch's relu does
MAX_NAN = """__device__ __forceinline__ float max_nan(float a, float b) {
  float c; asm("max.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b)); return c;
}
"""


@dataclass(frozen=True)
class Config:
    """The operator's H, D, ratio and dtype; how the entries are cut; how many blocks an SM is to hold."""

    H: int = 64
    D: int = 128
    ratio: int = 4
    dtype: str = "bfloat16"
    chunk: int = 2048  # entries of a block
    rows: int = 64  # entries of a product
    products: int = 1  # of a stage
    stages: int = 2
    blocks: int = 3
    threads: int = 128

    @property
    def queries(self) -> int:
        """Return how many queries a block takes."""
        return COLUMNS // self.H

    @property
    def groups(self) -> int:
        """Return how many groups of 8 columns hold the heads of a query."""
        return self.H // (LANES * PAIR)

    @property
    def stage(self) -> int:
        """Return how many entries are loaded at a time."""
        return self.rows * self.products


def fp8(H: int = 64, D: int = 128, ratio: int = 4, chunk: int = 2048) -> Config:
    """Return the config for e4m3. With 8 heads the 16 queries need more registers than four blocks leave to a thread."""
    return Config(H, D, ratio, "float8_e4m3fn", chunk, products=2, blocks=3 if H == 8 else 4)


class Tensors(NamedTuple):
    """The tensors of a call; without ``k_scale`` the scores are not scaled."""

    q: Any
    k: Any
    weights: Any
    k_scale: Any
    offset: Any
    out: Any


class Chunk(NamedTuple):
    """Where a block works: sequence b, the queries from ``query`` of S, the entries from ``first`` of L."""

    b: Any
    query: Any
    first: Any
    S: Any
    L: Any


class Tiles(NamedTuple):
    """The buffers of a block. ``visible`` is how many entries each query sees; a partial sum is that of a lane."""

    q_shared: Any
    w: Any
    visible: Any
    k_shared: Any
    scale_shared: Any
    dots: Any
    partial: Any
    partial_shared: Any


def _relu(x):
    return T.call_extern(F32, "max_nan", x, T.float32(0))


@T.macro
def sweep(cfg, whole, tensors, at, tiles):
    """Write the scores of a chunk; ``whole``: every query of the block is one of the S and sees every entry of the chunk."""
    b, query, first, S, L = at
    q_shared, w, visible, k_shared, scale_shared, dots, partial, partial_shared = tiles
    columns = T.reshape(dots, (cfg.rows, cfg.queries, cfg.groups, LANES, PAIR))
    for t in T.Pipelined(cfg.chunk // cfg.stage, num_stages=cfg.stages):
        entry = first + t * cfg.stage
        for j, d in T.Parallel(cfg.stage, cfg.D):
            k_shared[j, d] = tensors.k[b, entry + j if whole else T.min(entry + j, L - 1), d]
        if tensors.k_scale is not None:
            for j in T.Parallel(cfg.stage):
                scale_shared[j] = tensors.k_scale[b, entry + j if whole else T.min(entry + j, L - 1)]
        for u in T.unroll(cfg.products):
            T.gemm(
                k_shared[u * cfg.rows : u * cfg.rows + cfg.rows, :],
                q_shared,
                dots,
                transpose_B=True,
                clear_accum=True,
                policy=T.GemmWarpPolicy.FullRow,
            )
            T.fill(partial, 0)
            for g in T.unroll(cfg.groups):
                for p in T.unroll(PAIR):
                    for j, i, lane in T.Parallel(cfg.rows, cfg.queries, LANES):
                        partial[j, i, lane] += _relu(columns[j, i, g, lane, p]) * w[i, g, lane, p]
            for j, i, lane in T.Parallel(cfg.rows, cfg.queries, LANES):
                partial_shared[u * cfg.rows + j, i, lane] = partial[j, i, lane]
        for i, j in T.Parallel(cfg.queries, cfg.stage):
            score = (
                partial_shared[j, i, 0] + partial_shared[j, i, 1] + (partial_shared[j, i, 2] + partial_shared[j, i, 3])
            )
            if tensors.k_scale is not None:
                score = score * scale_shared[j]
            if whole:
                tensors.out[b, query + i, entry + j] = score
            elif query + i < S and entry + j < L:
                tensors.out[b, query + i, entry + j] = T.if_then_else(
                    entry + j < visible[i, j], score, -T.infinity(F32)
                )


@T.macro
def score_chunk(cfg, tensors, at):
    """Load the queries, and fill the chunk with -inf, sweep it whole or sweep it with comparisons."""
    b, query, first, S, L = at
    T.annotate_min_blocks_per_sm(cfg.blocks)
    q_shared = T.alloc_shared((COLUMNS, cfg.D), cfg.dtype)
    w = T.alloc_fragment((cfg.queries, cfg.groups, LANES, PAIR), F32)
    visible = T.alloc_fragment((cfg.queries, cfg.stage), "int32")
    k_shared = T.alloc_shared((cfg.stage, cfg.D), cfg.dtype)
    scale_shared = T.alloc_shared((cfg.stage,), F32)
    dots = T.alloc_fragment((cfg.rows, COLUMNS), F32)
    partial = T.alloc_fragment((cfg.rows, cfg.queries, LANES), F32)
    partial_shared = T.alloc_shared((cfg.stage, cfg.queries, LANES), F32)
    tiles = Tiles(q_shared, w, visible, k_shared, scale_shared, dots, partial, partial_shared)
    for i, d in T.Parallel(COLUMNS, cfg.D):
        q_shared[i, d] = tensors.q[b, T.min(query + i // cfg.H, S - 1), i % cfg.H, d]
    for i, g, lane, p in T.Parallel(cfg.queries, cfg.groups, LANES, PAIR):
        w[i, g, lane, p] = tensors.weights[b, T.min(query + i, S - 1), (g * LANES + lane) * PAIR + p]
    for i, j in T.Parallel(cfg.queries, cfg.stage):
        visible[i, j] = (tensors.offset[b] + query + i + 1) // cfg.ratio
    if first >= (tensors.offset[b] + query + cfg.queries) // cfg.ratio:
        for i, j in T.Parallel(cfg.queries, cfg.chunk):
            if query + i < S and first + j < L:
                tensors.out[b, query + i, first + j] = -T.infinity(F32)
    elif first + cfg.chunk <= T.min(L, (tensors.offset[b] + query + 1) // cfg.ratio) and query + cfg.queries <= S:
        sweep(cfg, True, tensors, at, tiles)
    else:
        sweep(cfg, False, tensors, at, tiles)


def indexer_scores(cfg: Config) -> T.PrimFunc:
    """Compute the scores of bf16 queries and keys."""
    B, S, L = T.dynamic("B"), T.dynamic("S"), T.dynamic("T")

    @T.prim_func
    def indexer_scores(
        q: T.Tensor((B, S, cfg.H, cfg.D), cfg.dtype),
        k: T.Tensor((B, L, cfg.D), cfg.dtype),
        weights: T.Tensor((B, S, cfg.H), F32),
        offset: T.Tensor((B,), "int32"),
        out: T.Tensor((B, S, L), F32),
    ):
        grid = T.ceildiv(S, cfg.queries), T.ceildiv(L, cfg.chunk), B
        with T.Kernel(*grid, threads=cfg.threads, prelude=MAX_NAN) as (x, y, b):
            query, first = x * cfg.queries, y * cfg.chunk
            score_chunk(cfg, Tensors(q, k, weights, None, offset, out), Chunk(b, query, first, S, L))

    return indexer_scores


def indexer_scores_fp8(cfg: Config) -> T.PrimFunc:
    """Compute the scores of e4m3 queries and keys, each multiplied by the scale of its entry."""
    B, S, L = T.dynamic("B"), T.dynamic("S"), T.dynamic("T")

    @T.prim_func
    def indexer_scores_fp8(
        q: T.Tensor((B, S, cfg.H, cfg.D), cfg.dtype),
        k: T.Tensor((B, L, cfg.D), cfg.dtype),
        weights: T.Tensor((B, S, cfg.H), F32),
        k_scale: T.Tensor((B, L), F32),
        offset: T.Tensor((B,), "int32"),
        out: T.Tensor((B, S, L), F32),
    ):
        grid = T.ceildiv(S, cfg.queries), T.ceildiv(L, cfg.chunk), B
        with T.Kernel(*grid, threads=cfg.threads, prelude=MAX_NAN) as (x, y, b):
            query, first = x * cfg.queries, y * cfg.chunk
            score_chunk(cfg, Tensors(q, k, weights, k_scale, offset, out), Chunk(b, query, first, S, L))

    return indexer_scores_fp8


def _chunk(b: int, s: int, t: int, queries: int) -> int:
    """Return the length of chunks: long ones restart seldom, short ones make enough blocks to fill a GPU."""
    long = b * -(-s // queries) * -(-t // 2048)
    return 2048 if long >= 1024 and t >= 2048 else 256


@planned
def _plan(h: int, d: int, ratio: int, chunk: int) -> Launch:
    return build(indexer_scores, Config(h, d, ratio, chunk=chunk))


@planned
def _plan_fp8(h: int, d: int, ratio: int, chunk: int) -> Launch:
    return build(indexer_scores_fp8, fp8(h, d, ratio, chunk))


def scores(q, k, weights, offset, ratio: int):
    """Launch ``indexer_scores`` on CUDA tensors; return the scores."""
    b, s, h, d = q.shape
    t = k.shape[1]
    out = weights.new_empty(b, s, t)
    kernel = _plan(h, d, ratio, _chunk(b, s, t, COLUMNS // h))
    kernel(aligned(q), aligned(k), aligned(weights), aligned(offset), out)
    return out


def scores_fp8(q, k, weights, k_scale, offset, ratio: int):
    """Launch ``indexer_scores_fp8`` on CUDA tensors; return the scores."""
    b, s, h, d = q.shape
    t = k.shape[1]
    out = weights.new_empty(b, s, t)
    kernel = _plan_fp8(h, d, ratio, _chunk(b, s, t, COLUMNS // h))
    kernel(aligned(q), aligned(k), aligned(weights), aligned(k_scale), aligned(offset), out)
    return out
