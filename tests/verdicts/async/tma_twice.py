"""Wrong: TMA stores each tile twice; and the compiler lets an elected thread elect again, without its warp."""

import tilelang.language as T

from verdicts import Refuted, contract

M = T.dynamic("M")


@T.prim_func
def kernel(x: T.Tensor((M, 128), "float32"), out: T.Tensor((M, 128), "float32")):
    with T.Kernel(T.ceildiv(M, 64), threads=128) as block:
        s = T.alloc_shared((64, 128), "float32")
        for i, j in T.Parallel(64, 128):
            if block * 64 + i < M:
                s[i, j] = x[block * 64 + i, j] * 2.0
        for _k in T.serial(2):
            T.copy(s, out[block * 64, 0])


CONTRACT = contract(kernel, "out")
VERDICT = Refuted(
    "L1", uniqueness="no two executions write the same element", coverage="twice", barrier="this election"
)
