"""Wrong: all threads store one more than what is there."""

import tilelang.language as T

from verdicts import Refuted, contract


@T.prim_func
def kernel(x: T.Tensor((32,), "int32"), out: T.Tensor((1,), "int32")):
    with T.Kernel(1, threads=32):
        out[0] = out[0] + 1


CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L1", uniqueness="no two executions write the same element of out", race="read of out")
