"""Wrong: two halves of a warp elect a thread each."""

import tilelang.language as T

from verdicts import Refuted, contract

M = T.dynamic("M")


@T.prim_func
def kernel(x: T.Tensor((M, 1), "float32"), out: T.Tensor((M, 1), "float32")):
    with T.Kernel(M, threads=128) as block:
        leads = T.alloc_local((1,), "bool")
        if T.get_thread_binding() % 32 < 16:
            leads[0] = T.shuffle_elect(128)
        else:
            leads[0] = T.shuffle_elect(128)
        if leads[0]:
            out[block, 0] = x[block, 0]


CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L1", barrier="all threads of a warp get to this election together")
