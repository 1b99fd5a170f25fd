"""Right: rows are divided by their root mean square; the last block of rows is ragged."""

import tilelang.language as T

from verdicts import Proved, contract

rows = T.dynamic("rows")
WIDTH, EPS = 64, 1e-5


@T.prim_func
def kernel(x: T.Tensor((rows, WIDTH), "float32"), out: T.Tensor((rows, WIDTH), "float32")):
    with T.Kernel(T.ceildiv(rows, 32), threads=64) as block:
        tile, squares = T.alloc_fragment((32, WIDTH), "float32"), T.alloc_fragment((32, WIDTH), "float32")
        power = T.alloc_fragment((32,), "float32")
        T.copy(x[block * 32, 0], tile)
        for i, j in T.Parallel(32, WIDTH):
            squares[i, j] = (tile[i, j] - 1) * (tile[i, j] - 1)
        T.reduce_sum(squares, power, dim=1)
        for i in T.Parallel(32):
            power[i] = T.rsqrt(power[i] / WIDTH + EPS)
        for i, j in T.Parallel(32, WIDTH):
            if block * 32 + i < rows:
                out[block * 32 + i, j] = tile[i, j] * power[i]


CONTRACT = contract(kernel, "out")


def reference(x):
    return x / (((x - 1) ** 2).mean(-1, keepdim=True) + EPS).sqrt()


VERDICT = Proved("L2", "range")
