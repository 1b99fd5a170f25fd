"""Wrong: tiles of 64 rows that TMA stores stand 63 rows apart."""

import tilelang.language as T

from verdicts import Refuted, contract

M = T.dynamic("M")


@T.prim_func
def kernel(x: T.Tensor((M, 128), "float32"), out: T.Tensor((M, 128), "float32")):
    with T.Kernel(T.ceildiv(M, 64), threads=128) as block:
        s = T.alloc_shared((64, 128), "float32")
        for i, j in T.Parallel(64, 128):
            if block * 63 + i < M:
                s[i, j] = x[block * 63 + i, j] * 2.0
        T.copy(s, out[block * 63, 0])


CONTRACT = contract(kernel, "out")
VERDICT = Refuted(
    "L1", coverage="every element of out is written", uniqueness="no two executions write the same element"
)
