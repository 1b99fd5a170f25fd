"""Wrong: the constant is log2 e to four digits only."""

import tilelang.language as T

from verdicts import Unproved, contract


@T.prim_func
def kernel(x: T.Tensor((8,), "float32"), out: T.Tensor((8,), "float32")):
    with T.Kernel(1, threads=8):
        for i in T.Parallel(8):
            out[i] = T.exp2(x[i] * 1.442)


CONTRACT = contract(kernel, "out")


def reference(x):
    return x.exp()


VERDICT = Unproved("L2", equivalence="out")
