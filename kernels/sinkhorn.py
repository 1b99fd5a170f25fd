"""Sinkhorn normalisation, one thread per n x n matrix (formula: reference/sinkhorn.py).

The matrix C itself is never updated. Dividing rows and columns keeps it in the form C[i,j] = r[i] p[i,j] c[j], with
p = softmax + eps, r = 1/u and c = 1/v, so the iteration runs on the vectors. Dividing column j by its sum + eps is

    v[j] <- v[j] (sum_i r[i] p[i,j] c[j] + eps) = sum_i p[i,j] r[i] + eps v[j]

and a row likewise: n reciprocals instead of n² divisions, and the rounding errors of the steps do not pile up in C.

The backward carries the derivative with respect to C in the same form, b[i,j] = r[i] dC[i,j] c[j]. Undoing the division
of column j, dC <- (dC - sum_i dC C) / (column sum + eps), becomes

    b[i,j] <- b[i,j] - r[i] c[j] sum_i b[i,j] p[i,j]

and a row likewise, without a division. The vectors r and c of every step are recomputed and kept in shared memory.
"""

from dataclasses import dataclass

import tilelang.language as T

from .build import launch, row_loop

F32 = "float32"


@dataclass(frozen=True)
class Config:
    """Static parameters: the operator's n, iterations and eps; matrices per block."""

    n: int = 4
    iterations: int = 20
    eps: float = 1e-6
    threads: int = 32


def _softmax(n: int, eps: float):
    @T.macro
    def softmax(logits, matrix, p):
        for i in T.unroll(n):
            for j in row_loop(n):
                p[i, j] = logits[matrix, i, j]
        top, scale = T.alloc_var(F32), T.alloc_var(F32)
        for i in T.unroll(n):
            top = p[i, 0]
            for j in T.unroll(1, n):
                top = T.max(top, p[i, j])
            scale = 0
            for j in T.unroll(n):
                p[i, j] = T.exp(p[i, j] - top)
                scale += p[i, j]
            scale = T.fast_rcp(scale)
            for j in T.unroll(n):
                p[i, j] = p[i, j] * scale + eps

    return softmax


def _steps(n: int, eps: float):
    @T.macro
    def row_step(p, u, r, c):
        for i in T.unroll(n):
            u[i] *= eps
            for j in T.unroll(n):
                u[i] += p[i, j] * c[j]
            r[i] = T.fast_rcp(u[i])

    @T.macro
    def column_step(p, v, r, c):
        for j in T.unroll(n):
            v[j] *= eps
            for i in T.unroll(n):
                v[j] += p[i, j] * r[i]
            c[j] = T.fast_rcp(v[j])

    @T.macro
    def start(p, u, v, r, c):
        for i in T.unroll(n):
            u[i] = 1
            v[i] = 1
            r[i] = 1
        column_step(p, v, r, c)

    return start, row_step, column_step


def _steps_back(n: int):
    @T.macro
    def row_step_back(p, b, r, c):
        dot = T.alloc_var(F32)
        for i in T.unroll(n):
            dot = 0
            for j in T.unroll(n):
                dot += b[i, j] * p[i, j]
            dot *= r[i]
            for j in T.unroll(n):
                b[i, j] -= dot * c[j]

    @T.macro
    def column_step_back(p, b, r, c):
        dot = T.alloc_var(F32)
        for j in T.unroll(n):
            dot = 0
            for i in T.unroll(n):
                dot += b[i, j] * p[i, j]
            dot *= c[j]
            for i in T.unroll(n):
                b[i, j] -= dot * r[i]

    return row_step_back, column_step_back


def sinkhorn_fwd(cfg: Config) -> T.PrimFunc:
    """logits -> out, both [count, n, n]."""
    n, threads = cfg.n, cfg.threads
    count = T.dynamic("count")
    shape = (count, n, n)
    softmax = _softmax(n, cfg.eps)
    start, row_step, column_step = _steps(n, cfg.eps)

    @T.prim_func
    def sinkhorn_fwd(logits: T.Tensor(shape, F32), out: T.Tensor(shape, F32)):
        with T.Kernel(T.ceildiv(count, threads), threads=threads) as block:
            matrix = block * threads + T.get_thread_binding()
            p = T.alloc_local((n, n), F32)
            u, v = T.alloc_local((n,), F32), T.alloc_local((n,), F32)
            r, c = T.alloc_local((n,), F32), T.alloc_local((n,), F32)
            if matrix < count:
                softmax(logits, matrix, p)
                start(p, u, v, r, c)
                for _ in T.serial(cfg.iterations - 1):
                    row_step(p, u, r, c)
                    column_step(p, v, r, c)
                for i in T.unroll(n):
                    for j in row_loop(n):
                        out[matrix, i, j] = r[i] * p[i, j] * c[j]

    return sinkhorn_fwd


def sinkhorn_bwd(cfg: Config) -> T.PrimFunc:
    """grad_out, logits -> grad_logits, all [count, n, n]."""
    n, threads, steps = cfg.n, cfg.threads, cfg.iterations - 1
    count = T.dynamic("count")
    shape = (count, n, n)
    softmax, exact_softmax = _softmax(n, cfg.eps), _softmax(n, 0.0)
    start, row_step, column_step = _steps(n, cfg.eps)
    row_step_back, column_step_back = _steps_back(n)

    @T.prim_func
    def sinkhorn_bwd(grad_out: T.Tensor(shape, F32), logits: T.Tensor(shape, F32), grad_logits: T.Tensor(shape, F32)):
        with T.Kernel(T.ceildiv(count, threads), threads=threads) as block:
            lane = T.get_thread_binding()
            matrix = block * threads + lane
            rows = T.alloc_shared((max(steps, 1), n, threads), F32)  # r and c before each step,
            columns = T.alloc_shared((max(steps, 1), n, threads), F32)  # a lane for each thread
            p, b = T.alloc_local((n, n), F32), T.alloc_local((n, n), F32)
            u, v = T.alloc_local((n,), F32), T.alloc_local((n,), F32)
            r, c = T.alloc_local((n,), F32), T.alloc_local((n,), F32)
            dot = T.alloc_var(F32)
            if matrix < count:
                softmax(logits, matrix, p)
                start(p, u, v, r, c)
                for t in T.serial(steps):
                    for i in T.unroll(n):
                        rows[t, i, lane] = r[i]
                        columns[t, i, lane] = c[i]
                    row_step(p, u, r, c)
                    column_step(p, v, r, c)
                for i in T.unroll(n):
                    for j in row_loop(n):
                        b[i, j] = grad_out[matrix, i, j] * (r[i] * c[j])
                column_step_back(p, b, r, c)
                for t in T.serial(steps):
                    for j in T.unroll(n):
                        c[j] = columns[steps - 1 - t, j, lane]
                    row_step_back(p, b, r, c)
                    for i in T.unroll(n):
                        r[i] = rows[steps - 1 - t, i, lane]
                    column_step_back(p, b, r, c)
                # through softmax; p - eps would lose the small ones
                exact_softmax(logits, matrix, p)
                for i in T.unroll(n):
                    dot = 0
                    for j in T.unroll(n):
                        dot += p[i, j] * b[i, j]
                    for j in row_loop(n):
                        grad_logits[matrix, i, j] = p[i, j] * (b[i, j] - dot)

    return sinkhorn_bwd


def forward(logits, iterations: int, eps: float):
    """Launch ``sinkhorn_fwd`` on a CUDA tensor [..., n, n]."""
    return launch(sinkhorn_fwd, Config(logits.shape[-1], iterations, eps), logits)


def backward(grad_out, logits, iterations: int, eps: float):
    """Launch ``sinkhorn_bwd`` on CUDA tensors [..., n, n]."""
    return launch(sinkhorn_bwd, Config(logits.shape[-1], iterations, eps), grad_out, logits)
