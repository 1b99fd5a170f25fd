"""Wrong: the contract says nothing of x, and exp(x) may overflow."""

import tilelang.language as T

from verdicts import Refuted, contract

rows = T.dynamic("rows")


@T.prim_func
def kernel(x: T.Tensor((rows, 4), "float32"), out: T.Tensor((rows, 4), "float32")):
    with T.Kernel(rows, threads=1) as row:
        total = T.alloc_local((1,), "float32")
        total[0] = 0.0
        for j in T.unroll(4):
            total[0] += T.exp(x[row, j])
        for j in T.unroll(4):
            out[row, j] = T.exp(x[row, j]) / total[0]


CONTRACT = contract(kernel, "out")


def reference(x):
    return x.softmax(-1)


VERDICT = Refuted("range", range="the argument of exp")
