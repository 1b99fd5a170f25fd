"""Right: 1 more than a square is positive."""

import tilelang.language as T

from verdicts import Proved, contract


@T.prim_func
def kernel(x: T.Tensor((8,), "float32"), out: T.Tensor((8,), "float32")):
    with T.Kernel(1, threads=8):
        for i in T.Parallel(8):
            out[i] = T.rsqrt(x[i] * x[i] + 1)


CONTRACT = contract(kernel, "out")


def reference(x):
    return 1 / (x * x + 1).sqrt()


VERDICT = Proved("range")
