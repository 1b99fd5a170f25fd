"""Wrong: exp(30) is infinite in half precision, to which it is rounded."""

import tilelang.language as T

from lemmata.reference.contract import Elements
from verdicts import Refuted, contract

rows = T.dynamic("rows")


@T.prim_func
def kernel(x: T.Tensor((rows, 4), "float32"), out: T.Tensor((rows, 4), "float16")):
    with T.Kernel(rows, threads=1) as row:
        for j in T.unroll(4):
            out[row, j] = T.exp(x[row, j])


CONTRACT = contract(kernel, "out", elements={"x": Elements(-30, 30)})


def reference(x):
    return x.exp()


VERDICT = Refuted("range", range="the argument of exp is at most 11")
