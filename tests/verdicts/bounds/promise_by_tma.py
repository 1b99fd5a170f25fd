"""Wrong: TMA stores what may lie outside the range that the contract gives."""

import tilelang.language as T

from lemmata.reference.contract import Elements
from verdicts import Refuted, contract

M = T.dynamic("M")


@T.prim_func
def kernel(x: T.Tensor((M, 128), "int32"), out: T.Tensor((M, 128), "int32")):
    with T.Kernel(T.ceildiv(M, 64), threads=128) as block:
        s = T.alloc_shared((64, 128), "int32")
        for i, j in T.Parallel(64, 128):
            if block * 64 + i < M:
                s[i, j] = x[block * 64 + i, j]
        T.copy(s, out[block * 64, 0])


CONTRACT = contract(kernel, "out", elements={"out": Elements(low=0, high="M")})
VERDICT = Refuted("L0", value="what tl.tma_store stores to out is in the range of the contract")
