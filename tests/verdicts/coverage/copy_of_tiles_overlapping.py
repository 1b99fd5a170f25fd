"""Wrong: tiles of 32 stand 31 elements apart."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import Refuted, contract

M, N = T.dynamic("M"), T.dynamic("N")


@T.prim_func
def kernel(x: T.Tensor((M, N), "float32"), out: T.Tensor((M, N), "float32")):
    with T.Kernel(T.ceildiv(M, 32), T.ceildiv(N, 32), threads=128) as (bx, by):
        for i, j in T.Parallel(32, 32):
            m, n = bx * 31 + i, by * 31 + j
            if m < M and n < N:
                out[m, n] = x[m, n]


CONTRACT = contract(kernel, "out", sizes={"N": Size(high=65535 * 32)})
VERDICT = Refuted(
    "L1", coverage="every element of out is written", uniqueness="no two executions write the same element of out"
)
