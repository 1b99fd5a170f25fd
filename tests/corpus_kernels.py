"""The kernels of the corpus: small, in the styles that TileLang offers, each with its planted errors.

Every kernel is written as one that ships: run-time sizes symbolic, every access guarded in the source so that it is in
bounds without the compiler's guards. A planted error is a value of ``bug``; ``None`` is the correct kernel.
"""

# No `from __future__ import annotations`: TileLang could not resolve the sizes that only annotations name.
from typing import Any

import tilelang.language as T

LOWEST = -(2.0**30)  # a running maximum starts here: finite, below every admissible score


def matmul(bug: str | None = None, tile: int = 32, threads: int = 128) -> Any:
    """c = a @ b in square tiles, every one of M, N and K ragged."""
    M, N, K = T.dynamic("M"), T.dynamic("N"), T.dynamic("K")
    slack = 1 if bug == "off-by-one guard" else 0
    stride = tile - 1 if bug == "overlapping tiles" else tile
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
                    inside = bx * stride + i < M + slack and step * tile + k < K
                    a_tile[i, k] = T.if_then_else(inside, a[bx * stride + i, step * tile + k], 0)
                for k, j in T.Parallel(tile, tile):
                    inside = step * tile + k < K and by * tile + j < N
                    b_tile[k, j] = T.if_then_else(inside, b[step * tile + k, by * tile + j], 0)
                T.gemm(a_tile, b_tile, c_tile, transpose_B=transposed)
            for i, j in T.Parallel(tile, tile):
                if bx * stride + i < M and by * tile + j < N:
                    c[bx * stride + i, by * tile + j] = c_tile[i, j]

    return matmul


def softmax(bug: str | None = None, columns: int = 32, threads: int = 128) -> Any:
    """The softmax of each row; as many rows to a block as there are columns, so that a wrong axis still fits."""
    rows = T.dynamic("rows")
    slack = 1 if bug == "off-by-one guard" else 0
    down = bug == "wrong axis"
    axis = 0 if down else 1
    shift = 0.0 if bug == "maximum not subtracted" else 1.0

    @T.prim_func
    def softmax(x: T.Tensor((rows, columns), "float32"), out: T.Tensor((rows, columns), "float32")):
        with T.Kernel(T.ceildiv(rows, columns), threads=threads) as block:
            p = T.alloc_fragment((columns, columns), "float32")
            top = T.alloc_fragment((columns,), "float32")
            total = T.alloc_fragment((columns,), "float32")
            for i, j in T.Parallel(columns, columns):
                row = block * columns + i
                p[i, j] = T.if_then_else(row < rows + slack, x[row, j], 0.0)
            T.reduce_max(p, top, dim=axis)
            for i, j in T.Parallel(columns, columns):
                p[i, j] = T.exp(p[i, j] - shift * top[j if down else i])
            T.reduce_sum(p, total, dim=axis)
            for i, j in T.Parallel(columns, columns):
                row = block * columns + i
                if row < rows:
                    out[row, j] = p[i, j] / total[j if down else i]

    return softmax


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


def copy_1d(bug: str | None = None, threads: int = 128) -> Any:
    """One element per thread, the last block ragged."""
    count = T.dynamic("count")
    slack = 1 if bug == "off-by-one guard" else 0
    grid = count // threads if bug == "floor grid" else T.ceildiv(count, threads)
    stride = threads - 1 if bug == "overlapping blocks" else threads

    @T.prim_func
    def copy_1d(x: T.Tensor((count,), "float32"), out: T.Tensor((count,), "float32")):
        with T.Kernel(grid, threads=threads) as block:
            i = block * stride + T.get_thread_binding()
            if i < count + slack:
                out[i] = x[i]

    return copy_1d


def copy_2d(bug: str | None = None, tile: int = 32, threads: int = 128) -> Any:
    """Tiles of a matrix, both sides ragged."""
    M, N = T.dynamic("M"), T.dynamic("N")
    slack = 1 if bug == "off-by-one guard" else 0
    stride = tile - 1 if bug == "overlapping tiles" else tile

    @T.prim_func
    def copy_2d(x: T.Tensor((M, N), "float32"), out: T.Tensor((M, N), "float32")):
        with T.Kernel(T.ceildiv(M, tile), T.ceildiv(N, tile), threads=threads) as (bx, by):
            for i, j in T.Parallel(tile, tile):
                m, n = bx * stride + i, by * tile + j
                if m < M and n < N + slack:
                    if bug == "wrong axis":
                        out[m, n] = x[n, m]
                    else:
                        out[m, n] = x[m, n]

    return copy_2d


def gather(bug: str | None = None, width: int = 32, rows: int = 8, threads: int = 128) -> Any:
    """out[i] = table[indices[i]], and zero where the index is -1."""
    count, entries = T.dynamic("count"), T.dynamic("entries")
    slack = 1 if bug == "off-by-one guard" else 0
    step = 1 if bug == "next row" else 0

    @T.prim_func
    def gather(
        table: T.Tensor((entries, width), "float32"),
        indices: T.Tensor((count,), "int32"),
        out: T.Tensor((count, width), "float32"),
    ):
        with T.Kernel(T.ceildiv(count, rows), threads=threads) as block:
            for i, j in T.Parallel(rows, width):
                row = block * rows + i
                if row < count + slack:
                    if bug == "index not masked":
                        out[row, j] = table[indices[row], j]
                    elif bug == "mask dropped":
                        out[row, j] = table[T.max(indices[row], 0), j]
                    else:
                        kept = table[T.max(indices[row], 0) + step, j]
                        out[row, j] = T.if_then_else(indices[row] >= 0, kept, 0.0)

    return gather


def strided(bug: str | None = None, stride: int = 4096, threads: int = 128) -> Any:
    """out[i] = x[i * stride], zero beyond the end of x; the product passes 2^31 long before i does.

    The product is kept in a variable: as part of an index the compiler would compute it in 64 bits, however written.
    """
    count, length = T.dynamic("count"), T.dynamic("length", "int64")
    width = "int32" if bug == "int32 product" else "int64"

    @T.prim_func
    def strided(x: T.Tensor((length,), "float32"), out: T.Tensor((count,), "float32")):
        with T.Kernel(T.ceildiv(count, threads), threads=threads) as block:
            start = T.alloc_var(width)
            i = block * threads + T.get_thread_binding()
            if i < count:
                start = T.cast(i, width) * stride
                out[i] = T.if_then_else(start < length, x[start], 0.0)

    return strided


def transpose(bug: str | None = None, tile: int = 32, rows: int = 4) -> Any:
    """out = x^T through a tile in shared memory, which every thread writes along rows and reads along columns."""
    M, N = T.dynamic("M"), T.dynamic("N")
    slack = 1 if bug == "off-by-one guard" else 0

    @T.prim_func
    def transpose(x: T.Tensor((M, N), "float32"), out: T.Tensor((N, M), "float32")):
        with T.Kernel(T.ceildiv(M, tile), T.ceildiv(N, tile), threads=rows * tile) as (bx, by):
            shared = T.alloc_shared((tile, tile), "float32")
            lane, first = T.get_thread_binding() % tile, T.get_thread_binding() // tile
            for step in T.serial(tile // rows):
                i = step * rows + first
                if bx * tile + i < M + slack and by * tile + lane < N:
                    shared[i, lane] = x[bx * tile + i, by * tile + lane]
            if bug != "dropped barrier":
                T.sync_threads()
            for step in T.serial(tile // rows):
                j = step * rows + first
                if by * tile + j < N and bx * tile + lane < M:
                    if bug == "wrong axis":
                        out[by * tile + j, bx * tile + lane] = shared[j, lane]
                    else:
                        out[by * tile + j, bx * tile + lane] = shared[lane, j]

    return transpose
