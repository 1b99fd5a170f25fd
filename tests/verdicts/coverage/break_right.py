"""Right: the same elements without the break, in a loop that ends with them."""

import tilelang.language as T

from verdicts import Proved, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n, 8), "float32"), out: T.Tensor((n, 8), "float32")):
    with T.Kernel(n, threads=1) as block:
        for k in T.serial(8):
            out[block, k] = x[block, k]


CONTRACT = contract(kernel, "out")
VERDICT = Proved("L1")
