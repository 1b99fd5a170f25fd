"""The loss of each query from its candidates' logarithms (formula: reference/indexer_loss.py).

A block of threads takes one query. Of the slots j of its list it has the scores I_j, and the teacher's logarithms a_j of one or
two blocks of heads, which are added as exponentials; -inf where a slot names no entry. It goes through them three times, for

    max a, max I,    A = log Σ exp a, Z = log Σ exp I,    Σ P (log P - log S)  with  log P = a - A,  log S = I - Z,

or, in the backward, dI = (S - P) dloss. Where all of a is -inf, the loss and the gradient are 0.
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


class Registers(NamedTuple):
    """The registers of a block: some slots' logarithms of teacher and student, maxima and sums of all; then A and Z."""

    a: Any
    i: Any
    high_a: Any
    high_i: Any
    sum_a: Any
    sum_i: Any


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
            a[j] = high + T.log(T.exp(a[j] - high) + T.exp(other - high))


@T.macro
def normalise(cfg, row, work):
    """Compute A and Z in place of the maxima; 0 where all of a is -inf, so that log P is -inf there."""
    T.fill(work.high_a, LOWEST)
    T.fill(work.high_i, LOWEST)
    for t in T.serial(T.ceildiv(row.scores.shape[3], ROW)):
        load(cfg, row, t * ROW, work.a, work.i)
        T.reduce_max(work.a, work.high_a, dim=0, clear=False)
        T.reduce_max(work.i, work.high_i, dim=0, clear=False)
    T.fill(work.sum_a, 0)
    T.fill(work.sum_i, 0)
    for u in T.serial(T.ceildiv(row.scores.shape[3], ROW)):
        load(cfg, row, u * ROW, work.a, work.i)
        for j in T.Parallel(ROW):
            work.a[j] = T.exp(work.a[j] - work.high_a[0])
        for j in T.Parallel(ROW):
            work.i[j] = T.exp(work.i[j] - work.high_i[0])
        T.reduce_sum(work.a, work.sum_a, dim=0, clear=False)
        T.reduce_sum(work.i, work.sum_i, dim=0, clear=False)
    for n in T.Parallel(1):
        work.high_a[n] = T.if_then_else(work.sum_a[n] > 0, work.high_a[n] + T.log(work.sum_a[n]), 0)
    for n in T.Parallel(1):
        work.high_i[n] = work.high_i[n] + T.log(work.sum_i[n])


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
            sum_a, sum_i = T.alloc_fragment((1,), F32), T.alloc_fragment((1,), F32)
            total = T.alloc_fragment((1,), F32)
            row = Row(log_mass, scores, b, s)
            normalise(cfg, row, Registers(a, i, high_a, high_i, sum_a, sum_i))
            T.fill(total, 0)
            for v in T.serial(T.ceildiv(K, ROW)):
                load(cfg, row, v * ROW, a, i)
                for j in T.Parallel(ROW):
                    a[j] = a[j] - high_a[0]
                for j in T.Parallel(ROW):
                    i[j] = T.if_then_else(T.exp(a[j]) > 0, T.exp(a[j]) * (a[j] - (i[j] - high_i[0])), 0)
                T.reduce_sum(i, total, dim=0, clear=False)
            for n in T.Parallel(1):
                out[b, s + n] = T.call_extern(F32, "max_nan", total[n], T.float32(0))

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
            sum_a, sum_i = T.alloc_fragment((1,), F32), T.alloc_fragment((1,), F32)
            row = Row(log_mass, scores, b, s)
            normalise(cfg, row, Registers(a, i, high_a, high_i, sum_a, sum_i))
            for v in T.serial(T.ceildiv(K, ROW)):
                load(cfg, row, v * ROW, a, i)
                for j in T.Parallel(ROW):
                    if v * ROW + j < K:
                        grad_scores[b, s, v * ROW + j] = T.if_then_else(
                            sum_a[0] > 0,
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
