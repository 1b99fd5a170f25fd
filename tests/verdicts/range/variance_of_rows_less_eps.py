"""Wrong: the eps is subtracted."""

import tilelang.language as T

from verdicts import Refuted, contract

rows = T.dynamic("rows")
WIDTH, EPS = 64, 1e-5


@T.prim_func
def kernel(x: T.Tensor((rows, WIDTH), "float32"), out: T.Tensor((rows, WIDTH), "float32")):
    with T.Kernel(rows, threads=64) as row:
        tile, squares = T.alloc_fragment((1, WIDTH), "float32"), T.alloc_fragment((1, WIDTH), "float32")
        mean, var = T.alloc_fragment((1,), "float32"), T.alloc_fragment((1,), "float32")
        T.copy(x[row, 0], tile)
        T.reduce_sum(tile, mean, dim=1)
        for i, j in T.Parallel(1, WIDTH):
            tile[i, j] = tile[i, j] - mean[i] / WIDTH
        for i, j in T.Parallel(1, WIDTH):
            squares[i, j] = tile[i, j] * tile[i, j]
        T.reduce_sum(squares, var, dim=1)
        for i, j in T.Parallel(1, WIDTH):
            out[row, j] = tile[i, j] * T.rsqrt(var[i] / WIDTH - EPS)


CONTRACT = contract(kernel, "out")


def reference(x):
    deviation = x - x.mean(-1, keepdim=True)
    return deviation / ((deviation**2).mean(-1, keepdim=True) - EPS).sqrt()


VERDICT = Refuted("range", range="the value is positive")
