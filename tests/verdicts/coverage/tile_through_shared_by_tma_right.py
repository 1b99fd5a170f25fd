"""Right: on sm_90 the compiler makes a store by TMA of the copy."""

import tilelang.language as T

from verdicts import Proved, contract

M = T.dynamic("M")


@T.prim_func
def kernel(A: T.Tensor((M, 64), "float32"), B: T.Tensor((M, 64), "float32")):
    with T.Kernel(T.ceildiv(M, 64), threads=128) as block:
        tile = T.alloc_shared((64, 64), "float32")
        T.copy(A[block * 64, 0], tile)
        T.copy(tile, B[block * 64, 0])


CONTRACT = contract(kernel, "B")
VERDICT = Proved("L1", unmodelled="proxy fence after the barrier")
