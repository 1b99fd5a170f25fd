"""Sums over the columns of a head, and over the queries of parts of a key's gradient, in a fixed order."""

import tilelang.language as T

from .sparse_attention_config import BF16, F32, I32, Config

ROWS = 8  # of a block of delta


def delta(cfg: Config) -> T.PrimFunc:
    """Sum x y over the columns, for each row of x and y."""
    N = T.dynamic("N")

    @T.prim_func
    def delta(
        x: T.Tensor((N, cfg.D), BF16),
        y: T.Tensor((N, cfg.D), BF16),
        total: T.Tensor((N,), F32),
    ):
        with T.Kernel(T.ceildiv(N, ROWS), threads=128) as block:
            products, sums = T.alloc_fragment((ROWS, cfg.D), F32), T.alloc_fragment((ROWS,), F32)
            for i, d in T.Parallel(ROWS, cfg.D):
                n = T.min(block * ROWS + i, N - 1)
                products[i, d] = T.cast(x[n, d], F32) * T.cast(y[n, d], F32)
            T.reduce_sum(products, sums, dim=1)
            for i in T.Parallel(ROWS):
                if block * ROWS + i < N:
                    total[block * ROWS + i] = sums[i]

    return delta


def sum_window(cfg: Config) -> T.PrimFunc:
    """Add to each row of the window's keys the parts that queries have of it, in their order."""
    B, S, R = T.dynamic("B"), T.dynamic("S"), T.dynamic("R")

    @T.prim_func
    def sum_window(
        parts: T.Tensor((B, S, cfg.window, cfg.head_blocks, cfg.D), BF16),
        total: T.Tensor((B, R, cfg.D), F32),
    ):
        with T.Kernel(R, B, threads=cfg.D // 8) as (r, b):
            acc = T.alloc_fragment((cfg.D,), F32)
            first = r - (R - S)  # the query whose own token has this row
            for d in T.Parallel(cfg.D):
                acc[d] = total[b, r, d]
            for s in T.serial(T.max(first, 0), T.min(first + cfg.window, S)):
                for block in T.unroll(cfg.head_blocks):
                    for d in T.Parallel(cfg.D):
                        acc[d] += parts[b, s, first + cfg.window - 1 - s, block, d]
            for d in T.Parallel(cfg.D):
                total[b, r, d] = acc[d]

    return sum_window


def sum_listed(cfg: Config) -> T.PrimFunc:
    """Add to each row the parts that are listed for it: those at order[i] for i from starts[r] to starts[r + 1] - 1."""
    N, R = T.dynamic("N"), T.dynamic("R")

    @T.prim_func
    def sum_listed(
        parts: T.Tensor((N, cfg.head_blocks, cfg.D), BF16),
        order: T.Tensor((N,), I32),
        starts: T.Tensor((R + 1,), I32),
        total: T.Tensor((R, cfg.D), F32),
    ):
        with T.Kernel(R, threads=cfg.D // 8) as r:
            acc = T.alloc_fragment((cfg.D,), F32)
            for d in T.Parallel(cfg.D):
                acc[d] = total[r, d]
            for i in T.serial(starts[r], starts[r + 1]):
                for block in T.unroll(cfg.head_blocks):
                    for d in T.Parallel(cfg.D):
                        acc[d] += parts[order[i], block, d]
            for d in T.Parallel(cfg.D):
                total[r, d] = acc[d]

    return sum_listed


def sum_visible(cfg: Config) -> T.PrimFunc:
    """Add to each entry the parts of all queries that see it, in their order."""
    B, S, L = T.dynamic("B"), T.dynamic("S"), T.dynamic("T")

    @T.prim_func
    def sum_visible(
        parts: T.Tensor((B, S, L, cfg.head_blocks, cfg.D), BF16),
        offset: T.Tensor((B,), I32),
        total: T.Tensor((B, L, cfg.D), F32),
    ):
        with T.Kernel(L, B, threads=cfg.D // 8) as (e, b):
            acc = T.alloc_fragment((cfg.D,), F32)
            for d in T.Parallel(cfg.D):
                acc[d] = total[b, e, d]
            for s in T.serial(T.max((e + 1) * cfg.ratio - 1 - offset[b], 0), S):
                for block in T.unroll(cfg.head_blocks):
                    for d in T.Parallel(cfg.D):
                        acc[d] += parts[b, s, e, block, d]
            for d in T.Parallel(cfg.D):
                total[b, e, d] = acc[d]

    return sum_visible
