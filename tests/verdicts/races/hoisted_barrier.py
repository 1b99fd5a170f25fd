"""Wrong: under the guard the compiler hoists the loop's barrier out of the loop (tile-ai/tilelang #2612)."""

import tilelang.language as T

from verdicts import Refuted, contract


@T.prim_func
def kernel(A: T.Tensor((128,), "float32"), B: T.Tensor((128,), "float32")):
    with T.Kernel(1, threads=128):
        tx = T.get_thread_binding()
        S = T.alloc_shared((128,), "float32")
        acc = T.alloc_local((1,), "float32")
        acc[0] = 0.0
        S[tx] = 0.0
        if tx % 4 == 0:
            for k in T.serial(4):
                S[tx] = A[tx] + k
                acc[0] += S[124 - tx]
        B[tx] = acc[0]


CONTRACT = contract(kernel, "B")
VERDICT = Refuted("L1", race="S", when="tx + tx' == 124 and tx % 4 == 0 and tx' % 4 == 0")
