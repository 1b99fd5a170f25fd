"""Lightning Indexer scores by tensor cores (formula: reference/indexer.py).

A block takes a few queries, 128 rows of q over all their heads, and a chunk of the entries, which stream through shared
memory. In the product k q^T entries are rows and (query, head) columns. A lane of a tensor core's result holds pairs of
columns, one pair in every 8: it sums relu times weight over its own, and the sums of four lanes meet in shared memory.

Most chunks are seen whole by all queries of the block: these are swept without a comparison. A chunk that no query sees
is only filled with -inf. No score depends on how queries and entries are cut.
"""

from dataclasses import dataclass

import tilelang.language as T

from .build import aligned, build

F32 = "float32"
COLUMNS = 128  # of one product: queries times heads
LANES, PAIR = 4, 2  # of every 8 columns of a tensor core's result, each of 4 lanes holds 2
# max(a, b) in C drops a NaN; this keeps it, as torch's relu does
MAX_NAN = """__device__ __forceinline__ float max_nan(float a, float b) {
  float c; asm("max.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b)); return c;
}
"""


@dataclass(frozen=True)
class Config:
    """Static parameters: the operator's H, D and ratio; entries of a chunk and of a product; what an SM is to hold."""

    H: int = 64
    D: int = 128
    ratio: int = 4
    dtype: str = "bfloat16"
    chunk: int = 2048
    rows: int = 64
    products: int = 1  # of a stage
    stages: int = 2
    blocks: int = 3
    threads: int = 128

    @property
    def queries(self) -> int:
        """Queries of a block."""
        return COLUMNS // self.H


def fp8(H: int = 64, D: int = 128, ratio: int = 4, chunk: int = 2048) -> Config:
    """The choices made for e4m3; the 16 queries of 8 heads need more registers than four blocks leave to a thread."""
    return Config(H, D, ratio, "float8_e4m3fn", chunk, products=2, blocks=3 if H == 8 else 4)


def _relu(x):
    return T.call_extern(F32, "max_nan", x, T.float32(0))


def _sweep(cfg: Config, scaled: bool, whole: bool):
    """Scores of a chunk; ``whole``: every query of the block is one of the S and sees every entry of the chunk."""
    rows, queries, groups = cfg.rows, cfg.queries, cfg.H // (LANES * PAIR)
    stage = rows * cfg.products

    @T.macro
    def sweep(k, k_scale, out, b, query, first, S, L, tiles):
        qs, w, seen, ks, scale, product, part, parts = tiles
        columns = T.reshape(product, (rows, queries, groups, LANES, PAIR))
        for t in T.Pipelined(cfg.chunk // stage, num_stages=cfg.stages):
            entry = first + t * stage
            for j, d in T.Parallel(stage, cfg.D):
                ks[j, d] = k[b, entry + j if whole else T.min(entry + j, L - 1), d]
            if scaled:
                for j in T.Parallel(stage):
                    scale[j] = k_scale[b, entry + j if whole else T.min(entry + j, L - 1)]
            for u in T.unroll(cfg.products):
                T.gemm(
                    ks[u * rows : u * rows + rows, :],
                    qs,
                    product,
                    transpose_B=True,
                    clear_accum=True,
                    policy=T.GemmWarpPolicy.FullRow,
                )
                T.fill(part, 0)
                for g in T.unroll(groups):
                    for p in T.unroll(PAIR):
                        for j, i, lane in T.Parallel(rows, queries, LANES):
                            part[j, i, lane] += _relu(columns[j, i, g, lane, p]) * w[i, g, lane, p]
                for j, i, lane in T.Parallel(rows, queries, LANES):
                    parts[u * rows + j, i, lane] = part[j, i, lane]
            for i, j in T.Parallel(queries, stage):
                score = parts[j, i, 0] + parts[j, i, 1] + (parts[j, i, 2] + parts[j, i, 3])
                if scaled:
                    score = score * scale[j]
                if whole:
                    out[b, query + i, entry + j] = score
                elif query + i < S and entry + j < L:
                    out[b, query + i, entry + j] = T.if_then_else(entry + j < seen[i, j], score, -T.infinity(F32))

    return sweep


def _block(cfg: Config, scaled: bool):
    queries, groups, stage = cfg.queries, cfg.H // (LANES * PAIR), cfg.rows * cfg.products
    sweep_whole, sweep = _sweep(cfg, scaled, True), _sweep(cfg, scaled, False)

    @T.macro
    def block(q, k, k_scale, weights, offset, out, b, query, first, S, L):
        T.annotate_min_blocks_per_sm(cfg.blocks)
        qs = T.alloc_shared((COLUMNS, cfg.D), cfg.dtype)
        w = T.alloc_fragment((queries, groups, LANES, PAIR), F32)
        seen = T.alloc_fragment((queries, stage), "int32")
        ks = T.alloc_shared((stage, cfg.D), cfg.dtype)
        scale = T.alloc_shared((stage,), F32)
        product = T.alloc_fragment((cfg.rows, COLUMNS), F32)
        part = T.alloc_fragment((cfg.rows, queries, LANES), F32)
        parts = T.alloc_shared((stage, queries, LANES), F32)
        tiles = qs, w, seen, ks, scale, product, part, parts
        for i, d in T.Parallel(COLUMNS, cfg.D):
            qs[i, d] = q[b, T.min(query + i // cfg.H, S - 1), i % cfg.H, d]
        for i, g, lane, p in T.Parallel(queries, groups, LANES, PAIR):
            w[i, g, lane, p] = weights[b, T.min(query + i, S - 1), (g * LANES + lane) * PAIR + p]
        for i, j in T.Parallel(queries, stage):
            seen[i, j] = (offset[b] + query + i + 1) // cfg.ratio
        if first >= (offset[b] + query + queries) // cfg.ratio:
            for i, j in T.Parallel(queries, cfg.chunk):
                if query + i < S and first + j < L:
                    out[b, query + i, first + j] = -T.infinity(F32)
        elif first + cfg.chunk <= T.min(L, (offset[b] + query + 1) // cfg.ratio) and query + queries <= S:
            sweep_whole(k, k_scale, out, b, query, first, S, L, tiles)
        else:
            sweep(k, k_scale, out, b, query, first, S, L, tiles)

    return block


def indexer_scores(cfg: Config) -> T.PrimFunc:
    """q [B,S,H,D], k [B,T,D], weights [B,S,H], offset [B] -> out [B,S,T]."""
    B, S, L = T.dynamic("B"), T.dynamic("S"), T.dynamic("T")
    block = _block(cfg, False)

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
            block(q, k, None, weights, offset, out, b, x * cfg.queries, y * cfg.chunk, S, L)

    return indexer_scores


def indexer_scores_fp8(cfg: Config) -> T.PrimFunc:
    """The same for e4m3 with k_scale [B,T]: scores are multiplied by their entry's scale."""
    B, S, L = T.dynamic("B"), T.dynamic("S"), T.dynamic("T")
    block = _block(cfg, True)

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
            block(q, k, k_scale, weights, offset, out, b, x * cfg.queries, y * cfg.chunk, S, L)

    return indexer_scores_fp8


def _chunk(b: int, s: int, t: int, queries: int) -> int:
    """Long chunks for the fewest restarts, short ones where there would be too few blocks to fill a GPU."""
    long = b * -(-s // queries) * -(-t // 2048)
    return 2048 if long >= 1024 and t >= 2048 else 256


def scores(q, k, weights, offset, ratio: int):
    """Launch ``indexer_scores`` on CUDA tensors."""
    b, s, h, d = q.shape
    cfg = Config(h, d, ratio, chunk=_chunk(b, s, k.shape[1], COLUMNS // h))
    out = weights.new_empty((b, s, k.shape[1]))
    build(indexer_scores, cfg)(aligned(q), aligned(k), aligned(weights), aligned(offset), out)
    return out


def scores_fp8(q, k, weights, k_scale, offset, ratio: int):
    """Launch ``indexer_scores_fp8`` on CUDA tensors."""
    b, s, h, d = q.shape
    cfg = fp8(h, d, ratio, _chunk(b, s, k.shape[1], COLUMNS // h))
    out = weights.new_empty((b, s, k.shape[1]))
    build(indexer_scores_fp8, cfg)(aligned(q), aligned(k), aligned(weights), aligned(k_scale), aligned(offset), out)
    return out
