"""Refused: 127.5 rounds to 128, which does not fit 8 bits."""

import tilelang.language as T

from verdicts import Unsupported, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n,), "float32"), out: T.Tensor((n,), "int8")):
    with T.Kernel(n, threads=1) as i:
        out[i] = T.cast(T.round(T.min(T.max(x[i], -127.5), 127.5)), "int8")


CONTRACT = contract(kernel, "out")
VERDICT = Unsupported("L0", "int8")
