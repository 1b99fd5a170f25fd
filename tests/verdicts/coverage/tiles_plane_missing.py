"""Wrong: the ragged tile of each row is missing, over a grid of two dimensions."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import Refuted, contract

M, N = T.dynamic("M"), T.dynamic("N")


@T.prim_func
def kernel(A: T.Tensor((M, N), "float32"), B: T.Tensor((M, N), "float32")):
    with T.Kernel(N // 64, T.ceildiv(M, 64), threads=128) as (bx, by):
        tile = T.alloc_fragment((64, 64), "float32")
        T.copy(A[by * 64, bx * 64], tile)
        T.copy(tile, B[by * 64, bx * 64])


CONTRACT = contract(kernel, "B", sizes={"M": Size(high=65535 * 64), "N": Size(high=65535 * 64)})
VERDICT = Refuted("L1", when="N % 64 != 0", coverage="every element of B is written")
