"""Right: of the copies in flight the compiler predicates the ragged ones."""

import tilelang.language as T

from verdicts import Proved, contract

M = T.dynamic("M")


@T.prim_func
def kernel(a: T.Tensor((M, 128), "float16"), b: T.Tensor((128, 64), "float16"), c: T.Tensor((M, 64), "float32")):
    with T.Kernel(T.ceildiv(M, 64), threads=128) as block:
        a_tile = T.alloc_shared((64, 32), "float16")
        b_tile = T.alloc_shared((32, 64), "float16")
        c_tile = T.alloc_fragment((64, 64), "float32")
        T.clear(c_tile)
        for k in T.Pipelined(4, num_stages=2):
            T.copy(a[block * 64, k * 32], a_tile)
            for i, j in T.Parallel(32, 64):
                b_tile[i, j] = b[k * 32 + i, j]
            T.gemm(a_tile, b_tile, c_tile)
        T.copy(c_tile, c[block * 64, 0])


CONTRACT = contract(kernel, "c")
OPTIONS = {"arch": "sm_80"}
VERDICT = Proved("L0")
