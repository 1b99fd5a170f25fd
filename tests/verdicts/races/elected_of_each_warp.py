"""Wrong: each warp elects a thread, and all of these store."""

import tilelang.language as T

from verdicts import Refuted, contract

M = T.dynamic("M")


@T.prim_func
def kernel(x: T.Tensor((M, 1), "float32"), out: T.Tensor((M, 1), "float32")):
    with T.Kernel(M, threads=128) as block:
        if T.shuffle_elect(32):
            out[block, 0] = x[block, 0] + T.cast(T.get_thread_binding(), "float32")


CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L1", uniqueness="no two executions write the same element", coverage="every element")
