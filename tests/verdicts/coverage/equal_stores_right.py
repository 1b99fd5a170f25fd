"""Right: all threads store the same value to one place."""

import tilelang.language as T

from verdicts import Proved, contract


@T.prim_func
def kernel(x: T.Tensor((1,), "int32"), out: T.Tensor((1,), "int32")):
    with T.Kernel(1, threads=32):
        out[0] = x[0]


CONTRACT = contract(kernel, "out")
VERDICT = Proved("L1")
