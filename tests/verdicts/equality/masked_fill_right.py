"""Right: 2 is an integer."""

import tilelang.language as T

from verdicts import Proved, contract

n = T.dynamic("n")


@T.prim_func
def kernel(a: T.Tensor((n,), "int32"), out: T.Tensor((n,), "float32")):
    with T.Kernel(n, threads=1) as r:
        out[r] = T.if_then_else(a[r] > 0, 2.0, T.cast(a[r], "float32"))


CONTRACT = contract(kernel, "out")


def reference(a):
    return a.masked_fill(a > 0, 2).float()


VERDICT = Proved("L2")
