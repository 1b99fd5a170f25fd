"""Wrong: the reference exchanges the axes on the way."""

import tilelang.language as T

from verdicts import Unproved, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n, 8), "float32"), out: T.Tensor((n, 8), "float32")):
    with T.Kernel(n, threads=8) as r:
        for d in T.Parallel(8):
            out[r, d] = x[r, d] * 2.0


CONTRACT = contract(kernel, "out")


def reference(x):
    return 2 * x.reshape(-1, 2, 4).transpose(1, 2).reshape(-1, 8)


VERDICT = Unproved("L2", equivalence="out")
