"""Right: the kernel has a barrier of its own before the arms."""

import tilelang.language as T

from verdicts import Proved, contract

M = T.dynamic("M")


@T.prim_func
def kernel(A: T.Tensor((M, 64), "float32"), B: T.Tensor((M, 64), "float32"), C: T.Tensor((M, 64), "float32")):
    with T.Kernel(M, 2, threads=64) as (row, part):
        tx = T.get_thread_binding()
        S, R = T.alloc_shared((64,), "float32"), T.alloc_shared((64,), "float32")
        S[tx] = A[row, tx]
        T.sync_threads()
        if part < 1:
            R[tx] = -S[tx]
            B[row, tx] = R[63 - tx]
        else:
            C[row, tx] = S[63 - tx]


CONTRACT = contract(kernel, "B", "C")
VERDICT = Proved("L1")
