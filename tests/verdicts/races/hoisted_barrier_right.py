"""Right: without a guard the compiler places its barriers inside the loop."""

import tilelang.language as T

from verdicts import Proved, contract


@T.prim_func
def kernel(A: T.Tensor((128,), "float32"), B: T.Tensor((128,), "float32")):
    with T.Kernel(1, threads=128):
        tx = T.get_thread_binding()
        S = T.alloc_shared((128,), "float32")
        acc = T.alloc_local((1,), "float32")
        acc[0] = 0.0
        S[tx] = 0.0
        for k in T.serial(4):
            S[tx] = A[tx] + k
            acc[0] += S[127 - tx]
        B[tx] = acc[0]


CONTRACT = contract(kernel, "B")
VERDICT = Proved("L1")
