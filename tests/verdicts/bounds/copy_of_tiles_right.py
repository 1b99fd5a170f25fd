"""Right: both sides of a tile are guarded."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import Proved, contract

M, N = T.dynamic("M"), T.dynamic("N")


@T.prim_func
def kernel(x: T.Tensor((M, N), "float32"), out: T.Tensor((M, N), "float32")):
    with T.Kernel(T.ceildiv(M, 32), T.ceildiv(N, 32), threads=128) as (bx, by):
        for i, j in T.Parallel(32, 32):
            m, n = bx * 32 + i, by * 32 + j
            if m < M and n < N:
                out[m, n] = x[m, n]


CONTRACT = contract(kernel, "out", sizes={"N": Size(high=65535 * 32)})
VERDICT = Proved("L0")
