"""Right: the constant is the reference's."""

import tilelang.language as T

from verdicts import Proved, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n,), "float64"), out: T.Tensor((n,), "float64")):
    with T.Kernel(n, threads=1) as i:
        out[i] = x[i] * T.float64(1.5)


CONTRACT = contract(kernel, "out")


def reference(x):
    return x * 1.5


VERDICT = Proved("L2")
