"""Wrong: two means that are equal over the reals may be rounded apart, so that the product is negative."""

import tilelang.language as T

from verdicts import Refuted, contract

rows = T.dynamic("rows")


@T.prim_func
def kernel(x: T.Tensor((rows, 4), "float32"), out: T.Tensor((rows,), "float32")):
    with T.Kernel(rows, threads=1) as row:
        mean, last = T.alloc_local((1,), "float32"), T.alloc_local((1,), "float32")
        var = T.alloc_local((1,), "float32")
        mean[0] = 0.0
        last[0] = 0.0
        var[0] = 0.0
        for j in T.unroll(4):
            mean[0] += x[row, j] / 4
            last[0] += x[row, 3 - j] / 4
        for j in T.unroll(4):
            var[0] += (x[row, j] - mean[0]) * (x[row, j] - last[0]) / 4
        out[row] = T.sqrt(var[0])


CONTRACT = contract(kernel, "out")


def reference(x):
    return ((x - x.mean(-1, keepdim=True)) ** 2).mean(-1).sqrt()


VERDICT = Refuted("range", range="the value is not negative")
