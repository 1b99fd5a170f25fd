"""Right: a warp stores a product to shared memory, two matrices at once, and the compiler places the barriers."""

import tilelang.language as T

from verdicts import Proved, contract

M = T.dynamic("M")


@T.prim_func
def kernel(A: T.Tensor((M, 64), "bfloat16"), B: T.Tensor((32, 64), "bfloat16"), C: T.Tensor((M, 32), "bfloat16")):
    with T.Kernel(T.ceildiv(M, 16), threads=128) as block:
        a = T.alloc_shared((16, 64), "bfloat16")
        b = T.alloc_shared((32, 64), "bfloat16")
        c = T.alloc_fragment((16, 32), "float32")
        tile = T.alloc_shared((16, 32), "bfloat16")
        T.copy(A[block * 16, 0], a)
        T.copy(B, b)
        T.gemm(a, b, c, transpose_B=True, clear_accum=True)
        T.copy(c, tile)
        for i, j in T.Parallel(16, 32):
            if block * 16 + i < M:
                C[block * 16 + i, j] = tile[i, j]


CONTRACT = contract(kernel, "C")
VERDICT = Proved("L1")
