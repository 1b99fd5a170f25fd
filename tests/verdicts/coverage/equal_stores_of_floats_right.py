"""Right: all threads store the same float to one place."""

import tilelang.language as T

from verdicts import Proved, contract


@T.prim_func
def kernel(x: T.Tensor((32,), "float32"), out: T.Tensor((1,), "float32")):
    with T.Kernel(1, threads=32):
        out[0] = T.exp(x[7]) + 1.0


CONTRACT = contract(kernel, "out")
VERDICT = Proved("L1")
