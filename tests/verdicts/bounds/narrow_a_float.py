"""Refused: a float need not fit 8 bits."""

import tilelang.language as T

from verdicts import Unsupported, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n,), "float32"), out: T.Tensor((n,), "int8")):
    with T.Kernel(n, threads=1) as i:
        out[i] = T.cast(x[i], "int8")


CONTRACT = contract(kernel, "out")
VERDICT = Unsupported("L0", "int8")
