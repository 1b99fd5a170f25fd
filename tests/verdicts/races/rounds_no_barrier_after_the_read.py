"""Wrong: the write of the next round meets the neighbour's read of this one."""

import tilelang.language as T

from verdicts import MANUAL, Refuted, contract

steps = T.dynamic("steps")


@T.prim_func
def kernel(A: T.Tensor((steps, 64), "float32"), B: T.Tensor((64,), "float32")):
    with T.Kernel(1, threads=64):
        tx = T.get_thread_binding()
        S = T.alloc_shared((64,), "float32")
        acc = T.alloc_local((1,), "float32")
        acc[0] = 0.0
        for k in T.serial(steps):
            S[tx] = A[k, tx]
            T.sync_threads()
            acc[0] += S[tx ^ 1]
        B[tx] = acc[0]


CONTRACT = contract(kernel, "B")
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Refuted("L1", race="S", when="tx == tx' ^ 1 and k' == k + 1")
