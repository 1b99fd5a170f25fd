"""Sinkhorn normalisation, one thread per n x n matrix (formula: reference/sinkhorn.py).

The matrix C itself is never updated. Dividing rows and columns by their sums keeps C[i,j] = P[i,j] / (u[i] v[j]), where
P = softmax + eps, so the iteration runs on the vectors u and v alone. With r = 1/u and c = 1/v, dividing column j by its
sum plus eps is

    v[j] <- v[j] (sum_i r[i] P[i,j] c[j] + eps) = sum_i P[i,j] r[i] + eps v[j]

and a row likewise: one product of a matrix and a vector and n reciprocals instead of n² divisions, and rounding errors
of u and v are forgiven by the next step. The backward runs the same recurrence in reverse.
"""

from __future__ import annotations

from dataclasses import dataclass

import tilelang.language as T


@dataclass(frozen=True)
class Config:
    """Static parameters: matrix width, steps and eps of the operator; matrices per block."""

    n: int = 4
    iterations: int = 20
    eps: float = 1e-6
    threads: int = 32


def _softmax(cfg: Config):
    n, vector = cfg.n, T.vectorized if cfg.n in (2, 4, 8) else T.unroll

    @T.macro
    def softmax(logits, matrix, p):
        for i in T.unroll(n):
            for j in vector(n):
                p[i, j] = logits[matrix, i, j]
        top, total = T.alloc_var("float32"), T.alloc_var("float32")
        for i in T.unroll(n):
            top = p[i, 0]
            for j in T.unroll(1, n):
                top = T.max(top, p[i, j])
            total = 0.0
            for j in T.unroll(n):
                p[i, j] = T.exp(p[i, j] - top)
                total += p[i, j]
            for j in T.unroll(n):
                p[i, j] = p[i, j] / total
    return softmax

def sinkhorn_fwd(cfg: Config):
    n, eps, threads = cfg.n, cfg.eps, cfg.threads
    softmax = _softmax(cfg)
    vector = T.vectorized if n in (2, 4, 8) else T.unroll
    count = T.dynamic("count")

    @T.prim_func
    def sinkhorn_fwd(logits: T.Tensor((count, n, n), "float32"), out: T.Tensor((count, n, n), "float32")):
        with T.Kernel(T.ceildiv(count, threads), threads=threads) as block:
            matrix = block * threads + T.get_thread_binding()
            p = T.alloc_local((n, n), "float32")
            u, v = T.alloc_local((n,), "float32"), T.alloc_local((n,), "float32")
            r, c = T.alloc_local((n,), "float32"), T.alloc_local((n,), "float32")
            if matrix < count:
                softmax(logits, matrix, p)
                for j in T.unroll(n):
                    v[j] = eps
                    for i in T.unroll(n):
                        p[i, j] += eps
                        v[j] += p[i, j]
                    c[j] = 1 / v[j]
                    u[j] = 1
                for _ in T.serial(cfg.iterations - 1):
                    for i in T.unroll(n):
                        u[i] *= eps
                        for j in T.unroll(n):
                            u[i] += p[i, j] * c[j]
                        r[i] = 1 / u[i]
                    for j in T.unroll(n):
                        v[j] *= eps
                        for i in T.unroll(n):
                            v[j] += p[i, j] * r[i]
                        c[j] = 1 / v[j]
                for i in T.unroll(n):
                    for j in vector(n):
                        out[matrix, i, j] = r[i] * p[i, j] * c[j]
    return sinkhorn_fwd
