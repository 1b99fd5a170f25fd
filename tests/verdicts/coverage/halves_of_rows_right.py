"""Right: two blocks share a row; the block's index says which row and which half."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import Proved, contract

M = T.dynamic("M")


@T.prim_func
def kernel(A: T.Tensor((M, 128), "float32"), B: T.Tensor((M, 128), "float32")):
    with T.Kernel(M * 2, threads=64) as block:
        tx = T.get_thread_binding()
        if block // 2 < M:
            B[block // 2, block % 2 * 64 + tx] = A[block // 2, block % 2 * 64 + tx]


CONTRACT = contract(kernel, "B", sizes={"M": Size(high=2**30 - 1)})
VERDICT = Proved("L1")
