"""Right: of two blocks of a row, the first writes one output and the second another."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import Proved, contract

M = T.dynamic("M")


@T.prim_func
def kernel(A: T.Tensor((M, 64), "float32"), B: T.Tensor((M, 64), "float32"), C: T.Tensor((M, 64), "float32")):
    with T.Kernel(M * 2, threads=64) as block:
        tx = T.get_thread_binding()
        if block % 2 < 1:
            B[block // 2, tx] = A[block // 2, tx]
        else:
            C[block // 2, tx] = -A[block // 2, tx]


CONTRACT = contract(kernel, "B", "C", sizes={"M": Size(high=2**30 - 1)})
VERDICT = Proved("L1")
