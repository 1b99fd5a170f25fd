"""Right: a product is stored to shared memory by warps, matrix by matrix, and from there by TMA."""

import tilelang.language as T

from verdicts import Proved, contract

M = T.dynamic("M")


@T.prim_func
def kernel(A: T.Tensor((M, 256), "bfloat16"), B: T.Tensor((256, 128), "bfloat16"), C: T.Tensor((M, 128), "bfloat16")):
    with T.Kernel(T.ceildiv(M, 64), threads=128) as block:
        a = T.alloc_shared((64, 64), "bfloat16")
        b = T.alloc_shared((64, 128), "bfloat16")
        c = T.alloc_shared((64, 128), "bfloat16")
        acc = T.alloc_fragment((64, 128), "float32")
        T.clear(acc)
        for k in T.serial(4):
            T.copy(A[block * 64, k * 64], a, disable_tma=True)
            T.copy(B[k * 64, 0], b, disable_tma=True)
            T.gemm(a, b, acc)
        T.copy(acc, c)
        T.copy(c, C[block * 64, 0])


CONTRACT = contract(kernel, "C")
VERDICT = Proved("L0", "L1", unmodelled="proxy fence after the barrier")
