"""Right: a loop that runs twice has a barrier in it."""

import tilelang.language as T

from verdicts import MANUAL, Proved, contract

n = T.dynamic("n")


@T.prim_func
def kernel(A: T.Tensor((64,), "float32"), X: T.Tensor((n,), "float32"), B: T.Tensor((64,), "float32")):
    with T.Kernel(1, threads=64):
        tx = T.get_thread_binding()
        S = T.alloc_shared((64,), "float32")
        S[tx] = A[tx]
        for _ in T.serial(2):
            T.sync_threads()
        B[tx] = S[63 - tx]


CONTRACT = contract(kernel, "B")
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Proved("L1")
