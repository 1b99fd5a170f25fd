"""Right: a loop is left before its index leaves the row."""

import tilelang.language as T

from verdicts import Proved, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n, 4), "float32"), out: T.Tensor((n, 4), "float32")):
    with T.Kernel(n, threads=32) as block:
        for k in T.serial(8):
            if k > 3:
                T.loop_break()
            out[block, k] = x[block, k]


CONTRACT = contract(kernel, "out")
VERDICT = Proved("L0")
