"""Right: one thread of the block is elected, and stores."""

import tilelang.language as T

from verdicts import Proved, contract

M = T.dynamic("M")


@T.prim_func
def kernel(x: T.Tensor((M, 1), "float32"), out: T.Tensor((M, 1), "float32")):
    with T.Kernel(M, threads=128) as block:
        if T.shuffle_elect(128):
            out[block, 0] = x[block, 0]


CONTRACT = contract(kernel, "out")
VERDICT = Proved("L1")
