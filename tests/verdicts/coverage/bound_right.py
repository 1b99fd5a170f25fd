"""Right: a loop bound to the threads of a block, each of which copies an element."""

import tilelang.language as T

from verdicts import Proved, contract

M = T.dynamic("M")


@T.prim_func
def kernel(x: T.Tensor((M, 128), "float32"), out: T.Tensor((M, 128), "float32")):
    with T.Kernel(M, threads=128) as block:
        for tx in T.thread_binding(0, 128, thread="threadIdx.x"):
            out[block, tx] = x[block, tx]


CONTRACT = contract(kernel, "out")
VERDICT = Proved("L0", "L1")
