"""Refused: the reference loops over a tensor of any length."""

import tilelang.language as T

from verdicts import Unsupported, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n,), "float32"), out: T.Tensor((n,), "float32")):
    with T.Kernel(n, threads=1) as r:
        out[r] = T.if_then_else(x[r] > 0, x[r], 0.0)


CONTRACT = contract(kernel, "out")


def reference(x):
    positive = x > 0
    return x * sum(positive)


VERDICT = Unsupported("L2", "a loop of the reference")
