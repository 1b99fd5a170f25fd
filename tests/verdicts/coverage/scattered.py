"""Refused: an element is written where data say."""

import tilelang.language as T

from verdicts import Unsupported, contract

n = T.dynamic("n")


@T.prim_func
def kernel(at: T.Tensor((n,), "int32"), out: T.Tensor((n,), "float32")):
    with T.Kernel(T.ceildiv(n, 32), threads=32) as block:
        i = block * 32 + T.get_thread_binding()
        if i < n:
            out[at[i]] = 1.0


CONTRACT = contract(kernel, "out")
VERDICT = Unsupported("L1", "whose shape depends on at")
