"""Right: the contract bounds x, so that exp(x) is a number of half precision."""

import tilelang.language as T

from lemmata.reference.contract import Elements
from verdicts import Proved, contract

rows = T.dynamic("rows")


@T.prim_func
def kernel(x: T.Tensor((rows, 4), "float32"), out: T.Tensor((rows, 4), "float16")):
    with T.Kernel(rows, threads=1) as row:
        for j in T.unroll(4):
            out[row, j] = T.exp(x[row, j])


CONTRACT = contract(kernel, "out", elements={"x": Elements(-10, 10)})


def reference(x):
    return x.exp()


VERDICT = Proved("L2", "range")
