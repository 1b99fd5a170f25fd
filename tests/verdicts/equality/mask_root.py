"""Refused: roots are no powers here."""

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
    return (x * positive) ** 0.5


VERDICT = Unsupported("L2", "the power 0.5")
