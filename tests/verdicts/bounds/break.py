"""Open: a loop is left one iteration too late, if it is not left before."""

import tilelang.language as T

from verdicts import Unknown, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n, 4), "float32"), out: T.Tensor((n, 4), "float32")):
    with T.Kernel(n, threads=32) as block:
        for k in T.serial(8):
            if k > 4:
                T.loop_break()
            out[block, k] = x[block, k]


CONTRACT = contract(kernel, "out")
VERDICT = Unknown("L0", bounds="loop_break")
