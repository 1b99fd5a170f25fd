"""Wrong: no barrier stands between the write and the read of another thread's slot."""

import tilelang.language as T

from verdicts import MANUAL, Refuted, contract

n = T.dynamic("n")


@T.prim_func
def kernel(A: T.Tensor((64,), "float32"), X: T.Tensor((n,), "float32"), B: T.Tensor((64,), "float32")):
    with T.Kernel(1, threads=64):
        tx = T.get_thread_binding()
        S = T.alloc_shared((64,), "float32")
        S[tx] = A[tx]
        B[tx] = S[63 - tx]


CONTRACT = contract(kernel, "B")
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Refuted("L1", race="read of S", when="tx + tx' == 63")
