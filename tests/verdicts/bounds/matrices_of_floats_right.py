"""Right: the compiler loads matrices of 32-bit floats by warps; a thread gets a register of each."""

import tilelang.language as T

from verdicts import Proved, contract

M = T.dynamic("M")


@T.prim_func
def kernel(A: T.Tensor((M, 32), "float32"), B: T.Tensor((32, 32), "float32"), C: T.Tensor((M, 32), "float32")):
    with T.Kernel(T.ceildiv(M, 32), threads=128) as block:
        a = T.alloc_shared((32, 32), "float32")
        b = T.alloc_shared((32, 32), "float32")
        c = T.alloc_fragment((32, 32), "float32")
        for i, j in T.Parallel(32, 32):
            a[i, j] = T.if_then_else(block * 32 + i < M, A[block * 32 + i, j], T.float32(0))
        T.copy(B, b)
        T.gemm(a, b, c, transpose_B=True, clear_accum=True)
        for i, j in T.Parallel(32, 32):
            if block * 32 + i < M:
                C[block * 32 + i, j] = c[i, j]


CONTRACT = contract(kernel, "C")
OPTIONS = {"arch": "sm_80"}
VERDICT = Proved("L0")
