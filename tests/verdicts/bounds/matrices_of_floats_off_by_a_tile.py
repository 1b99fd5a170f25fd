"""Wrong: the rows of the last block that do not exist are loaded too."""

import tilelang.language as T

from verdicts import Refuted, contract

M = T.dynamic("M")


@T.prim_func
def kernel(A: T.Tensor((M, 32), "float32"), B: T.Tensor((32, 32), "float32"), C: T.Tensor((M, 32), "float32")):
    with T.Kernel(T.ceildiv(M, 32), threads=128) as block:
        a = T.alloc_shared((32, 32), "float32")
        b = T.alloc_shared((32, 32), "float32")
        c = T.alloc_fragment((32, 32), "float32")
        for i, j in T.Parallel(32, 32):
            a[i, j] = A[block * 32 + i, j]
        T.copy(B, b)
        T.gemm(a, b, c, transpose_B=True, clear_accum=True)
        for i, j in T.Parallel(32, 32):
            if block * 32 + i < M:
                C[block * 32 + i, j] = c[i, j]


CONTRACT = contract(kernel, "C")
OPTIONS = {"arch": "sm_80"}
VERDICT = Refuted("L0", bounds="read of A")
