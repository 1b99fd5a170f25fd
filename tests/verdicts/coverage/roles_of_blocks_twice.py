"""Wrong: three blocks of a row, and the last two of them write the same output."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import Refuted, contract

M = T.dynamic("M")


@T.prim_func
def kernel(A: T.Tensor((M, 64), "float32"), B: T.Tensor((M, 64), "float32"), C: T.Tensor((M, 64), "float32")):
    with T.Kernel(M * 3, threads=64) as block:
        tx = T.get_thread_binding()
        if block % 3 < 1:
            B[block // 3, tx] = A[block // 3, tx]
        else:
            C[block // 3, tx] = -A[block // 3, tx]


CONTRACT = contract(kernel, "B", "C", sizes={"M": Size(high=2**29)})
VERDICT = Refuted("L1", uniqueness="no two executions write the same element of C")
