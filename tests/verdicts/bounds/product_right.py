"""Right: every one of M, N and K is ragged, and guarded."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import Proved, contract

M, N, K = T.dynamic("M"), T.dynamic("N"), T.dynamic("K")


@T.prim_func
def kernel(a: T.Tensor((M, K), "float16"), b: T.Tensor((K, N), "float16"), c: T.Tensor((M, N), "float32")):
    with T.Kernel(T.ceildiv(M, 32), T.ceildiv(N, 32), threads=128) as (bx, by):
        a_tile = T.alloc_shared((32, 32), "float16")
        b_tile = T.alloc_shared((32, 32), "float16")
        c_tile = T.alloc_fragment((32, 32), "float32")
        T.clear(c_tile)
        for step in T.serial(T.ceildiv(K, 32)):
            for i, k in T.Parallel(32, 32):
                inside = bx * 32 + i < M and step * 32 + k < K
                a_tile[i, k] = T.if_then_else(inside, a[bx * 32 + i, step * 32 + k], 0)
            for k, j in T.Parallel(32, 32):
                inside = step * 32 + k < K and by * 32 + j < N
                b_tile[k, j] = T.if_then_else(inside, b[step * 32 + k, by * 32 + j], 0)
            T.gemm(a_tile, b_tile, c_tile)
        for i, j in T.Parallel(32, 32):
            if bx * 32 + i < M and by * 32 + j < N:
                c[bx * 32 + i, by * 32 + j] = c_tile[i, j]


CONTRACT = contract(kernel, "c", sizes={"N": Size(high=65535 * 32)})
VERDICT = Proved("L0")
