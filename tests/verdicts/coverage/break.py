"""Open: whether each iteration happens hangs on what ends the loop."""

import tilelang.language as T

from verdicts import Unknown, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n, 8), "float32"), out: T.Tensor((n, 8), "float32")):
    with T.Kernel(n, threads=1) as block:
        for k in T.serial(8):
            out[block, k] = x[block, k]
            if k > 3:
                T.loop_break()


CONTRACT = contract(kernel, "out")
VERDICT = Unknown("L1", coverage="loop_break")
