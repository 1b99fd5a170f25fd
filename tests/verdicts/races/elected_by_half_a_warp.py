"""Wrong: half a warp gets to where the whole warp elects a thread."""

import tilelang.language as T

from verdicts import Refuted, contract

M = T.dynamic("M")


@T.prim_func
def kernel(x: T.Tensor((M, 1), "float32"), out: T.Tensor((M, 1), "float32")):
    with T.Kernel(M, threads=128) as block:
        if T.get_thread_binding() < 16 and T.shuffle_elect(128):
            out[block, 0] = x[block, 0]


CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L1", barrier="all threads of a warp get to this election together", coverage="every element")
