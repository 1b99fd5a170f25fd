"""Two kernels whose loops carry state, so that their proofs need invariants; the others are verdict files.

A planted error is a value of ``bug``; ``None`` is the correct kernel.
"""

# No `from __future__ import annotations`: TileLang could not resolve the sizes that only annotations name.
from typing import Any

import tilelang.language as T

LOWEST = -(2.0**30)  # a running maximum starts here: finite, below every admissible score


def matmul(bug: str | None = None, tile: int = 32, threads: int = 128) -> Any:
    """c = a @ b in square tiles, every one of M, N and K ragged."""
    M, N, K = T.dynamic("M"), T.dynamic("N"), T.dynamic("K")
    steps = K // tile if bug == "dropped tail" else T.ceildiv(K, tile)
    transposed = bug == "wrong axis"

    @T.prim_func
    def matmul(a: T.Tensor((M, K), "float16"), b: T.Tensor((K, N), "float16"), c: T.Tensor((M, N), "float32")):
        with T.Kernel(T.ceildiv(M, tile), T.ceildiv(N, tile), threads=threads) as (bx, by):
            a_tile = T.alloc_shared((tile, tile), "float16")
            b_tile = T.alloc_shared((tile, tile), "float16")
            c_tile = T.alloc_fragment((tile, tile), "float32")
            T.clear(c_tile)
            for step in T.serial(steps):
                for i, k in T.Parallel(tile, tile):
                    inside = bx * tile + i < M and step * tile + k < K
                    a_tile[i, k] = T.if_then_else(inside, a[bx * tile + i, step * tile + k], 0)
                for k, j in T.Parallel(tile, tile):
                    inside = step * tile + k < K and by * tile + j < N
                    b_tile[k, j] = T.if_then_else(inside, b[step * tile + k, by * tile + j], 0)
                T.gemm(a_tile, b_tile, c_tile, transpose_B=transposed)
            for i, j in T.Parallel(tile, tile):
                if bx * tile + i < M and by * tile + j < N:
                    c[bx * tile + i, by * tile + j] = c_tile[i, j]

    return matmul


def online_softmax(bug: str | None = None, columns: int = 32, blocks: int = 2, threads: int = 128) -> Any:
    """out = sum_j softmax(x)_j v_j for each row, in blocks of columns with a running maximum."""
    rows = T.dynamic("rows")
    width = blocks * columns

    @T.prim_func
    def online_softmax(
        x: T.Tensor((rows, width), "float32"),
        v: T.Tensor((rows, width), "float32"),
        out: T.Tensor((rows,), "float32"),
    ):
        with T.Kernel(T.ceildiv(rows, columns), threads=threads) as block:
            p = T.alloc_fragment((columns, columns), "float32")
            weighted = T.alloc_fragment((columns, columns), "float32")
            top = T.alloc_fragment((columns,), "float32")
            before = T.alloc_fragment((columns,), "float32")
            total = T.alloc_fragment((columns,), "float32")
            part = T.alloc_fragment((columns,), "float32")
            acc = T.alloc_fragment((columns,), "float32")
            T.fill(top, LOWEST)
            T.clear(total)
            T.clear(acc)
            for step in T.serial(blocks):
                for i, j in T.Parallel(columns, columns):
                    row = block * columns + i
                    p[i, j] = T.if_then_else(row < rows, x[row, step * columns + j], 0.0)
                T.copy(top, before)
                T.reduce_max(p, top, dim=1, clear=bug == "maximum forgotten")
                for i, j in T.Parallel(columns, columns):
                    p[i, j] = T.exp(p[i, j] - top[i])
                T.reduce_sum(p, part, dim=1)
                for i in T.Parallel(columns):
                    if bug == "missing rescale of the total":
                        total[i] = total[i] + part[i]
                    else:
                        total[i] = total[i] * T.exp(before[i] - top[i]) + part[i]
                for i, j in T.Parallel(columns, columns):
                    row = block * columns + i
                    weighted[i, j] = p[i, j] * T.if_then_else(row < rows, v[row, step * columns + j], 0.0)
                T.reduce_sum(weighted, part, dim=1)
                for i in T.Parallel(columns):
                    if bug == "missing rescale":
                        acc[i] = acc[i] + part[i]
                    else:
                        acc[i] = acc[i] * T.exp(before[i] - top[i]) + part[i]
            for i in T.Parallel(columns):
                if block * columns + i < rows:
                    out[block * columns + i] = acc[i] / total[i]

    return online_softmax
