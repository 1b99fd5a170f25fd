"""Wrong: of a loop bound to the threads of a block two store each element."""

import tilelang.language as T

from verdicts import Refuted, contract

M = T.dynamic("M")


@T.prim_func
def kernel(x: T.Tensor((M, 128), "float32"), out: T.Tensor((M, 128), "float32")):
    with T.Kernel(M, threads=128) as block:
        for tx in T.thread_binding(0, 128, thread="threadIdx.x"):
            out[block, tx // 2] = x[block, tx]


CONTRACT = contract(kernel, "out")
VERDICT = Refuted(
    "L1", coverage="every element of out is written", uniqueness="no two executions write the same element of out"
)
