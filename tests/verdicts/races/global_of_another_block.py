"""Wrong: each thread reads from global memory what a thread of another block writes."""

import tilelang.language as T

from verdicts import MANUAL, Refuted, contract


@T.prim_func
def kernel(A: T.Tensor((256,), "float32"), B: T.Tensor((256,), "float32"), C: T.Tensor((256,), "float32")):
    with T.Kernel(4, threads=64) as block:
        i = block * 64 + T.get_thread_binding()
        B[i] = A[i]
        C[i] = B[(i + 64) % 256]


CONTRACT = contract(kernel, "B", "C")
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Refuted("L1", race="B", when="bx' == (bx - 1) % 4 and tx == tx'")
