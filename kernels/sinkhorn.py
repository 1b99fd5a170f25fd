"""Sinkhorn normalisation, one thread for each n x n matrix (formula: reference/sinkhorn.py).

The matrix C itself is never updated. Dividing rows and columns keeps it in the form C[i,j] = r[i] p[i,j] c[j], with
p = softmax + eps, r = 1/u and c = 1/v, so the iteration runs on the vectors. Dividing column j by its sum + eps is

    v[j] <- v[j] (sum_i r[i] p[i,j] c[j] + eps) = sum_i p[i,j] r[i] + eps v[j]

and likewise for a row. So a step takes n reciprocals instead of n² divisions, and its rounding errors do not add up in C.

The backward keeps the derivative with respect to C in the same form, b[i,j] = r[i] dC[i,j] c[j]. Undoing the division of
column j, dC <- (dC - sum_i dC C) / (column sum + eps), becomes

    b[i,j] <- b[i,j] - r[i] c[j] sum_i b[i,j] p[i,j]

and likewise for a row, without a division. The vectors r and c of every step are recomputed and kept in shared memory.
"""

from dataclasses import dataclass
from typing import NamedTuple

import tilelang.language as T

from .build import build, launch, planned, row_loop

F32 = "float32"


class Names(NamedTuple):
    """The buffers that the proofs bind: the matrices and vectors of the formula, and r and c of every step."""

    p: str = "p"
    b: str = "b"
    u: str = "u"
    v: str = "v"
    r: str = "r"
    c: str = "c"
    rows: str = "rows"
    columns: str = "columns"


NAMES = Names()


@dataclass(frozen=True)
class Config:
    """The operator's n, iterations and eps; how many matrices a block takes."""

    n: int = 4
    iterations: int = 20
    eps: float = 1e-6
    threads: int = 32


@T.macro
def softmax(n, eps, logits, matrix, p):
    """Set p to the softmax of each row of the logits, plus eps."""
    for i in T.unroll(n):
        for j in row_loop(n):
            p[i, j] = logits[matrix, i, j]
    row_max, scale = T.alloc_var(F32), T.alloc_var(F32)
    for i in T.unroll(n):
        row_max = p[i, 0]
        for j in T.unroll(1, n):
            row_max = T.max(row_max, p[i, j])
        scale = 0
        for j in T.unroll(n):
            p[i, j] = T.exp(p[i, j] - row_max)
            scale += p[i, j]
        scale = T.fast_rcp(scale)
        for j in T.unroll(n):
            p[i, j] = p[i, j] * scale + eps


@T.macro
def row_step(cfg, p, u, r, c):
    """Divide each row by its sum + eps."""
    for i in T.unroll(cfg.n):
        u[i] *= cfg.eps
        for j in T.unroll(cfg.n):
            u[i] += p[i, j] * c[j]
        r[i] = T.fast_rcp(u[i])


@T.macro
def column_step(cfg, p, v, r, c):
    """Divide each column by its sum + eps."""
    for j in T.unroll(cfg.n):
        v[j] *= cfg.eps
        for i in T.unroll(cfg.n):
            v[j] += p[i, j] * r[i]
        c[j] = T.fast_rcp(v[j])


@T.macro
def start(cfg, p, u, v, r, c):
    """Set the vectors to 1, and divide the columns for the first time."""
    for i in T.unroll(cfg.n):
        u[i] = 1
        v[i] = 1
        r[i] = 1
    column_step(cfg, p, v, r, c)


@T.macro
def row_step_back(n, p, b, r, c):
    """Undo the division of each row, for the derivative."""
    dot = T.alloc_var(F32)
    for i in T.unroll(n):
        dot = 0
        for j in T.unroll(n):
            dot += b[i, j] * p[i, j]
        dot *= r[i]
        for j in T.unroll(n):
            b[i, j] -= dot * c[j]


@T.macro
def column_step_back(n, p, b, r, c):
    """Undo the division of each column, for the derivative."""
    dot = T.alloc_var(F32)
    for j in T.unroll(n):
        dot = 0
        for i in T.unroll(n):
            dot += b[i, j] * p[i, j]
        dot *= c[j]
        for i in T.unroll(n):
            b[i, j] -= dot * r[i]


def sinkhorn_fwd(cfg: Config) -> T.PrimFunc:
    """Normalise the logits, [count, n, n]."""
    n, threads = cfg.n, cfg.threads
    count = T.dynamic("count")
    shape = (count, n, n)

    @T.prim_func
    def sinkhorn_fwd(logits: T.Tensor(shape, F32), out: T.Tensor(shape, F32)):
        with T.Kernel(T.ceildiv(count, threads), threads=threads) as block:
            matrix = block * threads + T.get_thread_binding()
            p = T.alloc_local((n, n), F32)
            u, v = T.alloc_local((n,), F32), T.alloc_local((n,), F32)
            r, c = T.alloc_local((n,), F32), T.alloc_local((n,), F32)
            if matrix < count:
                softmax(n, cfg.eps, logits, matrix, p)
                start(cfg, p, u, v, r, c)
                for _ in T.serial(cfg.iterations - 1):
                    row_step(cfg, p, u, r, c)
                    column_step(cfg, p, v, r, c)
                for i in T.unroll(n):
                    for j in row_loop(n):
                        out[matrix, i, j] = r[i] * p[i, j] * c[j]

    return sinkhorn_fwd


def sinkhorn_bwd(cfg: Config) -> T.PrimFunc:
    """Compute the gradient of the logits, [count, n, n]."""
    n, threads, steps = cfg.n, cfg.threads, cfg.iterations - 1
    count = T.dynamic("count")
    shape = (count, n, n)

    @T.prim_func
    def sinkhorn_bwd(grad_out: T.Tensor(shape, F32), logits: T.Tensor(shape, F32), grad_logits: T.Tensor(shape, F32)):
        with T.Kernel(T.ceildiv(count, threads), threads=threads) as block:
            lane = T.get_thread_binding()
            matrix = block * threads + lane
            rows = T.alloc_shared((max(steps, 1), n, threads), F32)  # r before each step, a lane for each thread
            columns = T.alloc_shared((max(steps, 1), n, threads), F32)  # c before each step
            p, b = T.alloc_local((n, n), F32), T.alloc_local((n, n), F32)
            u, v = T.alloc_local((n,), F32), T.alloc_local((n,), F32)
            r, c = T.alloc_local((n,), F32), T.alloc_local((n,), F32)
            dot = T.alloc_var(F32)
            if matrix < count:
                softmax(n, cfg.eps, logits, matrix, p)
                start(cfg, p, u, v, r, c)
                for t in T.serial(steps):
                    for i in T.unroll(n):
                        rows[t, i, lane] = r[i]
                        columns[t, i, lane] = c[i]
                    row_step(cfg, p, u, r, c)
                    column_step(cfg, p, v, r, c)
                for i in T.unroll(n):
                    for j in row_loop(n):
                        b[i, j] = grad_out[matrix, i, j] * (r[i] * c[j])
                column_step_back(n, p, b, r, c)
                for t in T.serial(steps):
                    for j in T.unroll(n):
                        c[j] = columns[steps - 1 - t, j, lane]
                    row_step_back(n, p, b, r, c)
                    for i in T.unroll(n):
                        r[i] = rows[steps - 1 - t, i, lane]
                    column_step_back(n, p, b, r, c)
                # the backward of softmax, from p without eps: p - eps would lose the small ones
                softmax(n, 0.0, logits, matrix, p)
                for i in T.unroll(n):
                    dot = 0
                    for j in T.unroll(n):
                        dot += p[i, j] * b[i, j]
                    for j in row_loop(n):
                        grad_logits[matrix, i, j] = p[i, j] * (b[i, j] - dot)

    return sinkhorn_bwd


@planned
def _forward(n: int, iterations: int, eps: float):
    return build(sinkhorn_fwd, Config(n, iterations, eps))


@planned
def _backward(n: int, iterations: int, eps: float):
    return build(sinkhorn_bwd, Config(n, iterations, eps))


def forward(logits, iterations: int, eps: float):
    """Launch ``sinkhorn_fwd`` on a CUDA tensor [..., n, n]; return the normalised matrices."""
    return launch(_forward(logits.shape[-1], iterations, eps), logits)


def backward(grad_out, logits, iterations: int, eps: float):
    """Launch ``sinkhorn_bwd`` on CUDA tensors [..., n, n]; return the gradient of the logits."""
    return launch(_backward(logits.shape[-1], iterations, eps), grad_out, logits)
