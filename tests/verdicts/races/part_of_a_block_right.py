"""Right: all threads of the block take part in the barrier."""

import tilelang.language as T

from verdicts import MANUAL, Proved, contract


@T.prim_func
def kernel(A: T.Tensor((128,), "float32"), B: T.Tensor((64,), "float32")):
    with T.Kernel(1, threads=64):
        tx = T.get_thread_binding()
        S = T.alloc_shared((128,), "float32")
        S[tx] = A[tx]
        T.sync_threads()
        B[tx] = S[63 - tx]


CONTRACT = contract(kernel, "B")
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Proved("L1")
