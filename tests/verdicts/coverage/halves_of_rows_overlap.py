"""Wrong: the second half begins one column early."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import Refuted, contract

M = T.dynamic("M")


@T.prim_func
def kernel(A: T.Tensor((M, 128), "float32"), B: T.Tensor((M, 128), "float32")):
    with T.Kernel(M * 2, threads=64) as block:
        tx = T.get_thread_binding()
        if block // 2 < M:
            B[block // 2, block % 2 * 63 + tx] = A[block // 2, block % 2 * 63 + tx]


CONTRACT = contract(kernel, "B", sizes={"M": Size(high=2**30 - 1)})
VERDICT = Refuted(
    "L1", coverage="every element of B is written", uniqueness="no two executions write the same element of B"
)
