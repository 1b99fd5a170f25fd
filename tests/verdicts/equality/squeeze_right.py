"""Right: a dimension of size 1 is dropped."""

import tilelang.language as T

from verdicts import Proved, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n, 1), "float32"), out: T.Tensor((n,), "float32")):
    with T.Kernel(n, threads=1) as r:
        out[r] = x[r, 0] * 2.0


CONTRACT = contract(kernel, "out")


def reference(x):
    return x.squeeze(1) * 2


VERDICT = Proved("L2")
