"""Right: x less the larger of x and 5 is not above 0."""

import tilelang.language as T

from verdicts import Proved, contract


@T.prim_func
def kernel(x: T.Tensor((8,), "float32"), out: T.Tensor((8,), "float32")):
    with T.Kernel(1, threads=8):
        for i in T.Parallel(8):
            out[i] = T.exp(x[i] - T.max(x[i], 5.0))


CONTRACT = contract(kernel, "out")


def reference(x):
    return (x - x.clamp(min=5)).exp()


VERDICT = Proved("range")
