"""Right: the compiler places the barriers between the copies and the product of swizzled tiles."""

import tilelang.language as T

from verdicts import Proved, contract

M, N = T.dynamic("M"), T.dynamic("N")


@T.prim_func
def kernel(A: T.Tensor((M, N), "float16"), B: T.Tensor((N, 64), "float16"), C: T.Tensor((M, 64), "float32")):
    with T.Kernel(T.ceildiv(M, 64), threads=128) as block:
        a = T.alloc_shared((64, 32), "float16")
        b = T.alloc_shared((32, 64), "float16")
        c = T.alloc_fragment((64, 64), "float32")
        T.clear(c)
        for k in T.serial(T.ceildiv(N, 32)):
            T.copy(A[block * 64, k * 32], a)
            T.copy(B[k * 32, 0], b)
            T.gemm(a, b, c)
        T.copy(c, C[block * 64, 0])


CONTRACT = contract(kernel, "C")
OPTIONS = {"arch": "sm_80"}
VERDICT = Proved("L1", unmodelled="tirx.ptx_mma")
