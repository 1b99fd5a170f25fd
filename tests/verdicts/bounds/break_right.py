"""Right: a guard does what the break would."""

import tilelang.language as T

from verdicts import Proved, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n,), "float32"), out: T.Tensor((n,), "float32")):
    with T.Kernel(n, threads=32) as block:
        for k in T.serial(8):
            if k <= 3:
                out[block] = x[block]


CONTRACT = contract(kernel, "out")
VERDICT = Proved("L0")
