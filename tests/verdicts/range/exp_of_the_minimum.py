"""Wrong: x less the smaller of x and 5 may be large."""

import tilelang.language as T

from verdicts import Refuted, contract


@T.prim_func
def kernel(x: T.Tensor((8,), "float32"), out: T.Tensor((8,), "float32")):
    with T.Kernel(1, threads=8):
        for i in T.Parallel(8):
            out[i] = T.exp(x[i] - T.min(x[i], 5.0))


CONTRACT = contract(kernel, "out")


def reference(x):
    return (x - x.clamp(max=5)).exp()


VERDICT = Refuted("range", range="the argument of exp is at most 0")
