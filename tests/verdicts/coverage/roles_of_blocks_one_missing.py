"""Wrong: one output is for the last of three blocks of a row, and a row has two."""

import tilelang.language as T

from verdicts import Refuted, contract

M = T.dynamic("M")


@T.prim_func
def kernel(A: T.Tensor((M, 64), "float32"), B: T.Tensor((M, 64), "float32"), C: T.Tensor((M, 64), "float32")):
    with T.Kernel(M, 2, threads=64) as (row, part):
        tx = T.get_thread_binding()
        if part < 1:
            B[row, tx] = A[row, tx]
        elif part == 2:
            C[row, tx] = -A[row, tx]


CONTRACT = contract(kernel, "B", "C")
VERDICT = Refuted("L1", coverage="every element of C is written")
