"""Right: a variance is a sum of squares, and has a square root."""

import tilelang.language as T

from verdicts import Proved, contract

rows = T.dynamic("rows")


@T.prim_func
def kernel(x: T.Tensor((rows, 4), "float32"), out: T.Tensor((rows,), "float32")):
    with T.Kernel(rows, threads=1) as row:
        mean, var = T.alloc_local((1,), "float32"), T.alloc_local((1,), "float32")
        mean[0] = 0.0
        var[0] = 0.0
        for j in T.unroll(4):
            mean[0] += x[row, j] / 4
        for j in T.unroll(4):
            var[0] += (x[row, j] - mean[0]) * (x[row, j] - mean[0]) / 4
        out[row] = T.sqrt(var[0])


CONTRACT = contract(kernel, "out")


def reference(x):
    return ((x - x.mean(-1, keepdim=True)) ** 2).mean(-1).sqrt()


VERDICT = Proved("range")
