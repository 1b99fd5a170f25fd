"""The loss of each query from its candidates' logarithms (formula: reference/indexer_loss.py).

A block of threads takes one query. Of the slots j of its list it has the scores I_j, and the teacher's logarithms a_j of one or
two blocks of heads, which are added as exponentials; -inf where a slot names no entry. It goes through them twice, for

    A = log Σ exp a, Z = log Σ exp I,    Σ P (log P - log S)  with  log P = a - A,  log S = I - Z,

or, in the backward, dI = (S - P) dloss. Each sum is relative to the maximum so far, m, which a tile raises to n:

    Σ exp(x - n) = exp(m - n) Σ exp(x - m) + Σ of the tile.

Where all of a is -inf, the loss and the gradient are 0.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import tilelang.language as T

from .build import aligned, build
from .indexer import MAX_NAN
from .sparse_attention_config import F32

THREADS, ROW = 128, 512  # threads of a block, slots that they take at once
LOWEST = -(2.0**100)  # a maximum starts here: finite, and below every logarithm


@dataclass(frozen=True)
class Config:
    """How many blocks of heads the teacher's logarithms are of: 1 or 2."""

    blocks: int = 1


class Row(NamedTuple):
    """What a block reads, of sequence b and query s."""

    log_mass: Any
    scores: Any
    b: Any
    s: Any


class Sum(NamedTuple):
    """A sum of exponentials, Σ exp(x - high): the largest x so far, the largest before a tile, and the sum."""

    high: Any
    last: Any
    total: Any


@T.macro
def load(cfg, row, first, a, i):
    """Load the logarithms of some slots, -inf beyond the last."""
    K = row.scores.shape[3]
    for j in T.Parallel(ROW):
        i[j] = T.if_then_else(first + j < K, row.scores[row.b, row.s, 0, first + j], -T.infinity(F32))
    for j in T.Parallel(ROW):
        a[j] = T.if_then_else(first + j < K, row.log_mass[row.b, row.s, 0, first + j], -T.infinity(F32))
    if cfg.blocks == 2:
        for j in T.Parallel(ROW):
            other = T.if_then_else(first + j < K, row.log_mass[row.b, row.s, 1, first + j], -T.infinity(F32))
            high = T.max(T.max(a[j], other), LOWEST)
            some = T.max(a[j], other) > -T.infinity(F32)
            a[j] = T.if_then_else(some, high + T.log(T.exp(a[j] - high) + T.exp(other - high)), -T.infinity(F32))


@T.macro
def add(x, total):
    """Add a tile of x to the sum of exponentials."""
    T.copy(total.high, total.last)
    T.reduce_max(x, total.high, dim=0, clear=False)
    for j in T.Parallel(ROW):
        x[j] = T.exp(x[j] - total.high[0])
    for n in T.Parallel(1):
        total.total[n] = total.total[n] * T.exp(total.last[n] - total.high[n])
    T.reduce_sum(x, total.total, dim=0, clear=False)


@T.macro
def normalise(cfg, row, x, sums):
    """Compute A and Z in place of the maxima; 0 where all of the logarithms are -inf."""
    for each in sums:
        T.fill(each.high, LOWEST)
        T.fill(each.total, 0)
    for t in T.serial(T.ceildiv(row.scores.shape[3], ROW)):
        load(cfg, row, t * ROW, x[0], x[1])
        add(x[0], sums[0])
        add(x[1], sums[1])
    for each in sums:
        for n in T.Parallel(1):
            each.high[n] = T.if_then_else(each.total[n] > 0, each.high[n] + T.log(each.total[n]), 0)


def loss_rows(cfg: Config) -> T.PrimFunc:
    """Write the loss of each query."""
    B, S, K = T.dynamic("B"), T.dynamic("S"), T.dynamic("K")

    @T.prim_func
    def loss_rows(
        log_mass: T.Tensor((B, S, cfg.blocks, K), F32),
        scores: T.Tensor((B, S, 1, K), F32),
        out: T.Tensor((B, S), F32),
    ):
        with T.Kernel(S, B, threads=THREADS, prelude=MAX_NAN) as (s, b):
            a, i = T.alloc_fragment((ROW,), F32), T.alloc_fragment((ROW,), F32)
            high_a, high_i = T.alloc_fragment((1,), F32), T.alloc_fragment((1,), F32)
            last_a, last_i = T.alloc_fragment((1,), F32), T.alloc_fragment((1,), F32)
            sum_a, sum_i = T.alloc_fragment((1,), F32), T.alloc_fragment((1,), F32)
            loss = T.alloc_fragment((1,), F32)
            row = Row(log_mass, scores, b, s)
            normalise(cfg, row, (a, i), (Sum(high_a, last_a, sum_a), Sum(high_i, last_i, sum_i)))
            T.fill(loss, 0)
            for v in T.serial(T.ceildiv(K, ROW)):
                load(cfg, row, v * ROW, a, i)
                for j in T.Parallel(ROW):  # log P, and log S where P is more than 0
                    a[j] = a[j] - high_a[0]
                    i[j] = T.if_then_else(a[j] > -T.infinity(F32), i[j] - high_i[0], 0)
                for j in T.Parallel(ROW):
                    i[j] = T.exp(a[j]) * (T.if_then_else(a[j] > -T.infinity(F32), a[j], 0) - i[j])
                T.reduce_sum(i, loss, dim=0, clear=False)
            for n in T.Parallel(1):
                out[b, s + n] = T.call_extern(F32, "max_nan", loss[n], T.float32(0))

    return loss_rows


def loss_scores_bwd(cfg: Config) -> T.PrimFunc:
    """Write the gradient of the scores of each query, 0 for a slot that names no entry."""
    B, S, K = T.dynamic("B"), T.dynamic("S"), T.dynamic("K")

    @T.prim_func
    def loss_scores_bwd(
        grad_out: T.Tensor((B, S), F32),
        log_mass: T.Tensor((B, S, cfg.blocks, K), F32),
        scores: T.Tensor((B, S, 1, K), F32),
        grad_scores: T.Tensor((B, S, K), F32),
    ):
        with T.Kernel(S, B, threads=THREADS) as (s, b):
            a, i = T.alloc_fragment((ROW,), F32), T.alloc_fragment((ROW,), F32)
            high_a, high_i = T.alloc_fragment((1,), F32), T.alloc_fragment((1,), F32)
            last_a, last_i = T.alloc_fragment((1,), F32), T.alloc_fragment((1,), F32)
            sum_a, sum_i = T.alloc_fragment((1,), F32), T.alloc_fragment((1,), F32)
            row = Row(log_mass, scores, b, s)
            normalise(cfg, row, (a, i), (Sum(high_a, last_a, sum_a), Sum(high_i, last_i, sum_i)))
            for v in T.serial(T.ceildiv(K, ROW)):
                load(cfg, row, v * ROW, a, i)
                for j in T.Parallel(ROW):
                    if v * ROW + j < K:
                        grad_scores[b, s, v * ROW + j] = T.if_then_else(
                            a[j] > -T.infinity(F32),
                            (T.exp(i[j] - high_i[0]) - T.exp(a[j] - high_a[0])) * grad_out[b, s],
                            0,
                        )

    return loss_scores_bwd


def losses(log_mass, scores):
    """Launch ``loss_rows`` on CUDA tensors; return the loss of each query."""
    out = scores.new_empty(scores.shape[:2])
    build(loss_rows, Config(log_mass.shape[2]))(log_mass, scores, out)
    return out


def scores_gradient(grad_out, log_mass, scores):
    """Launch ``loss_scores_bwd`` on CUDA tensors; return the gradient of the scores, [B, S, K]."""
    grad_scores = scores.new_empty(*scores.shape[:2], scores.shape[3])
    build(loss_scores_bwd, Config(log_mass.shape[2]))(aligned(grad_out), log_mass, scores, grad_scores)
    return grad_scores
