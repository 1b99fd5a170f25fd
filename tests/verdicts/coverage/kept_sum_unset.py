"""Wrong: nobody sets what all threads store."""

import tilelang.language as T

from verdicts import Refuted, contract

M = T.dynamic("M")


@T.prim_func
def kernel(x: T.Tensor((M, 32), "float32"), out: T.Tensor((M,), "float32")):
    with T.Kernel(M, threads=32) as block:
        s = T.alloc_local((1,), "float32")

        out[block] = s[0]


CONTRACT = contract(kernel, "out")
VERDICT = Refuted(
    "L1",
    coverage="writes no place of its tile of out twice",
    uniqueness="no two executions write the same element of out",
)
