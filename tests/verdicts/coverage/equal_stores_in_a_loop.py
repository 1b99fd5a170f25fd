"""Wrong: all threads store the same value to one place, in two iterations two values."""

import tilelang.language as T

from verdicts import Refuted, contract


@T.prim_func
def kernel(x: T.Tensor((32,), "int32"), out: T.Tensor((1,), "int32")):
    with T.Kernel(1, threads=32):
        for k in T.serial(2):
            out[0] = x[k]


CONTRACT = contract(kernel, "out")
VERDICT = Refuted(
    "L1",
    coverage="writes no place of its tile of out twice",
    uniqueness="no two executions write the same element of out",
)
