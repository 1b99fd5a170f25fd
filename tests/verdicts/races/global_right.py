"""Right: each thread reads back from global memory what it has just written itself."""

import tilelang.language as T

from verdicts import MANUAL, Proved, contract


@T.prim_func
def kernel(A: T.Tensor((256,), "float32"), B: T.Tensor((256,), "float32"), C: T.Tensor((256,), "float32")):
    with T.Kernel(4, threads=64) as block:
        i = block * 64 + T.get_thread_binding()
        B[i] = A[i]
        C[i] = B[i]


CONTRACT = contract(kernel, "B", "C")
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Proved("L1")
