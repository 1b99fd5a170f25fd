"""Right: every thread reads an element of a row and writes it to a column."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import Proved, contract

M, N = T.dynamic("M"), T.dynamic("N")


@T.prim_func
def kernel(x: T.Tensor((M, N), "float32"), out: T.Tensor((N, M), "float32")):
    with T.Kernel(T.ceildiv(M, 32), T.ceildiv(N, 32), threads=128) as (bx, by):
        for i, j in T.Parallel(32, 32):
            if bx * 32 + i < M and by * 32 + j < N:
                out[by * 32 + j, bx * 32 + i] = x[bx * 32 + i, by * 32 + j]


CONTRACT = contract(kernel, "out", sizes={"N": Size(high=65535 * 32)})


def reference(x):
    return x.mT


VERDICT = Proved("L2")
