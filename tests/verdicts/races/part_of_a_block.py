"""Refused: the barrier is one of half the block, in a kernel whose warps have no roles."""

import tilelang.language as T

from verdicts import MANUAL, Unsupported, contract


@T.prim_func
def kernel(A: T.Tensor((128,), "float32"), B: T.Tensor((64,), "float32")):
    with T.Kernel(1, threads=128):
        tx = T.get_thread_binding()
        S = T.alloc_shared((128,), "float32")
        if tx < 64:
            S[tx] = A[tx]
            T.sync_threads(3, 64)
            B[tx] = S[63 - tx]


CONTRACT = contract(kernel, "B")
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Unsupported("L1", "some threads")
