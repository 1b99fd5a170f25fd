"""Sums of the backward of attention, each in a fixed order (formula: kernels/sparse_attention_backward.py).

``delta`` sums over the columns of a head. The others add up the parts of the gradients of keys, one after the other in the
order of the queries, so that a sum may be interrupted and taken up again without a change of any bit.
"""

from dataclasses import dataclass

import tilelang.language as T
import torch

from .build import aligned, build
from .sparse_attention_config import BF16, F32, I32, PANEL

ROWS = 8  # of a block of delta
WIDTH = 8  # columns that a thread reads at once
AHEAD = 8  # parts that are read before they are added


@dataclass(frozen=True)
class Config:
    """The static parameters: columns, blocks of heads that have parts of their own, slots of the window, HCA's ratio."""

    D: int = 512
    blocks: int = 1
    window: int = 128
    ratio: int = 128


def delta(cfg: Config) -> T.PrimFunc:
    """Write Σ x y over the columns of each row; rows come in eights, as heads do."""
    N = T.dynamic("N")

    @T.prim_func
    def delta(
        x: T.Tensor((N, ROWS, cfg.D), BF16),
        y: T.Tensor((N, ROWS, cfg.D), BF16),
        total: T.Tensor((N, ROWS), F32),
    ):
        with T.Kernel(N, threads=ROWS * PANEL // WIDTH) as n:
            sums, result = T.alloc_fragment((ROWS, PANEL), F32), T.alloc_fragment((ROWS,), F32)
            T.fill(sums, 0)
            for p in T.unroll(cfg.D // PANEL):
                for i, d in T.Parallel(ROWS, PANEL):
                    sums[i, d] += T.cast(x[n, i, p * PANEL + d], F32) * T.cast(y[n, i, p * PANEL + d], F32)
            T.reduce_sum(sums, result, dim=1)
            for i in T.Parallel(ROWS):
                total[n, i] = result[i]

    return delta


@T.macro
def _add(cfg, acc, ahead):
    """Add what has been read, in its order."""
    for u in T.unroll(AHEAD):
        for d in T.Parallel(cfg.D):
            acc[d] += ahead[u, d]


def sum_window(cfg: Config) -> T.PrimFunc:
    """Add to each row of the window's keys the parts that queries have of it.

    Row r of ``total`` is in slot i of the query s for which r = R - S - window + 1 + i + s.
    """
    B, S, R = T.dynamic("B"), T.dynamic("S"), T.dynamic("R")

    @T.prim_func
    def sum_window(
        parts: T.Tensor((B, S, cfg.window, cfg.blocks, cfg.D), BF16),
        total: T.Tensor((B, R, cfg.D), F32),
    ):
        with T.Kernel(R, B, threads=cfg.D // WIDTH) as (r, b):
            acc, ahead = T.alloc_fragment((cfg.D,), F32), T.alloc_fragment((AHEAD, cfg.D), BF16)
            own = r - (R - S)  # the query whose own token this is
            first, end = T.max(own, 0), T.min(own + cfg.window, S)
            for d in T.Parallel(cfg.D):
                acc[d] = total[b, r, d]
            for i in T.serial(T.ceildiv((end - first) * cfg.blocks, AHEAD)):
                for u, d in T.Parallel(AHEAD, cfg.D):
                    s = T.min(first + (i * AHEAD + u) // cfg.blocks, end - 1)
                    ahead[u, d] = T.if_then_else(
                        i * AHEAD + u < (end - first) * cfg.blocks,
                        parts[b, s, own + cfg.window - 1 - s, (i * AHEAD + u) % cfg.blocks, d],
                        0,
                    )
                _add(cfg, acc, ahead)
            for d in T.Parallel(cfg.D):
                total[b, r, d] = acc[d]

    return sum_window


def sum_listed(cfg: Config) -> T.PrimFunc:
    """Add to each row the parts that are listed for it: those at order[i] for i from starts[r] to ends[r] - 1."""
    N, R = T.dynamic("N"), T.dynamic("R")

    @T.prim_func
    def sum_listed(
        parts: T.Tensor((N, cfg.blocks, cfg.D), BF16),
        order: T.Tensor((N,), I32),
        starts: T.Tensor((R,), I32),
        ends: T.Tensor((R,), I32),
        total: T.Tensor((R, cfg.D), F32),
    ):
        with T.Kernel(R, threads=cfg.D // WIDTH) as r:
            acc, ahead = T.alloc_fragment((cfg.D,), F32), T.alloc_fragment((AHEAD, cfg.D), BF16)
            first, end = starts[r], T.min(ends[r], N)
            for d in T.Parallel(cfg.D):
                acc[d] = total[r, d]
            for i in T.serial(T.ceildiv((end - first) * cfg.blocks, AHEAD)):
                for u, d in T.Parallel(AHEAD, cfg.D):
                    n = T.min(first + (i * AHEAD + u) // cfg.blocks, end - 1)
                    ahead[u, d] = T.if_then_else(
                        i * AHEAD + u < (end - first) * cfg.blocks, parts[order[n], (i * AHEAD + u) % cfg.blocks, d], 0
                    )
                _add(cfg, acc, ahead)
            for d in T.Parallel(cfg.D):
                total[r, d] = acc[d]

    return sum_listed


def sum_visible(cfg: Config) -> T.PrimFunc:
    """Add to each entry the parts of all queries that see it: it ends at the query's position or before."""
    B, S, L = T.dynamic("B"), T.dynamic("S"), T.dynamic("T")

    @T.prim_func
    def sum_visible(
        parts: T.Tensor((B, S, L, cfg.blocks, cfg.D), BF16),
        offset: T.Tensor((B,), I32),
        total: T.Tensor((B, L, cfg.D), F32),
    ):
        with T.Kernel(L, B, threads=cfg.D // WIDTH) as (e, b):
            acc, ahead = T.alloc_fragment((cfg.D,), F32), T.alloc_fragment((AHEAD, cfg.D), BF16)
            first = T.min(T.max((e + 1) * cfg.ratio - 1 - offset[b], 0), S)
            for d in T.Parallel(cfg.D):
                acc[d] = total[b, e, d]
            for i in T.serial(T.ceildiv((S - first) * cfg.blocks, AHEAD)):
                for u, d in T.Parallel(AHEAD, cfg.D):
                    s = T.min(first + (i * AHEAD + u) // cfg.blocks, S - 1)
                    ahead[u, d] = T.if_then_else(
                        i * AHEAD + u < (S - first) * cfg.blocks, parts[b, s, e, (i * AHEAD + u) % cfg.blocks, d], 0
                    )
                _add(cfg, acc, ahead)
            for d in T.Parallel(cfg.D):
                total[b, e, d] = acc[d]

    return sum_visible


def columns_product(x, y):
    """Launch ``delta`` on CUDA tensors of one shape; return Σ x y over the last dimension, in fp32."""
    d = x.shape[-1]
    total = x.new_empty(x.shape[:-1], dtype=torch.float32)
    build(delta, Config(d))(aligned(x).view(-1, ROWS, d), aligned(y).view(-1, ROWS, d), total.view(-1, ROWS))
    return total


def add_window(parts, total):
    """Launch ``sum_window`` on CUDA tensors."""
    *_, window, blocks, d = parts.shape
    build(sum_window, Config(d, blocks, window))(parts, total)


def add_listed(parts, order, starts, ends, total):
    """Launch ``sum_listed`` on CUDA tensors: parts of all slots of all queries, rows of all sequences."""
    *_, blocks, d = parts.shape
    build(sum_listed, Config(d, blocks))(parts.view(-1, blocks, d), order, starts, ends, total.view(-1, d))


def add_visible(parts, offset, total, ratio: int):
    """Launch ``sum_visible`` on CUDA tensors."""
    *_, blocks, d = parts.shape
    build(sum_visible, Config(d, blocks, ratio=ratio))(parts, offset, total)
