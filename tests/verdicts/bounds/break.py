"""Refused: a loop is left early."""

import tilelang.language as T

from verdicts import Unsupported, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n,), "float32"), out: T.Tensor((n,), "float32")):
    with T.Kernel(n, threads=32) as block:
        for k in T.serial(8):
            if k > 3:
                T.loop_break()
            out[block] = x[block]


CONTRACT = contract(kernel, "out")
VERDICT = Unsupported("L0", "loop_break")
