"""Right: the exponential."""

import tilelang.language as T

from verdicts import Proved, contract


@T.prim_func
def kernel(x: T.Tensor((4,), "float32"), out: T.Tensor((4,), "float32")):
    with T.Kernel(1, threads=4):
        for i in T.Parallel(4):
            out[i] = T.exp(x[i])


CONTRACT = contract(kernel, "out")


def reference(x):
    return x.exp()


VERDICT = Proved("L2")
