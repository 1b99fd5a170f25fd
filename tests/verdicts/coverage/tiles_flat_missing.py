"""Wrong: the ragged tile of each row is missing, over a flattened grid."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import Refuted, contract

M, N = T.dynamic("M"), T.dynamic("N")


@T.prim_func
def kernel(A: T.Tensor((M, N), "float32"), B: T.Tensor((M, N), "float32")):
    with T.Kernel((N // 64) * T.ceildiv(M, 64), threads=128) as block:
        for i, j in T.Parallel(64, 64):
            m, n = block // T.ceildiv(N, 64) * 64 + i, block % T.ceildiv(N, 64) * 64 + j
            if m < M and n < N:
                B[m, n] = A[m, n]


CONTRACT = contract(kernel, "B", sizes={"M": Size(high=65535 * 64), "N": Size(high=65535 * 64)})
VERDICT = Refuted("L1", when="N % 64 != 0", coverage="every element of B is written")
