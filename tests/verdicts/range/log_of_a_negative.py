"""Wrong: x + 1 may be negative."""

import tilelang.language as T

from verdicts import Refuted, contract


@T.prim_func
def kernel(x: T.Tensor((8,), "float32"), out: T.Tensor((8,), "float32")):
    with T.Kernel(1, threads=8):
        for i in T.Parallel(8):
            out[i] = T.log(x[i] + 1)


CONTRACT = contract(kernel, "out")


def reference(x):
    return (x + 1).log()


VERDICT = Refuted("range", range="the value is positive")
