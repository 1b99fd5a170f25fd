"""Right: a matrix of any number of rows, read as one row; the reference reshapes it, and back."""

import tilelang.language as T

from verdicts import Proved, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n, 8), "float32"), out: T.Tensor((n, 8), "float32")):
    with T.Kernel(n, threads=8) as r:
        for d in T.Parallel(8):
            out[r, d] = x[r, d] * 2.0


CONTRACT = contract(kernel, "out")


def reference(x):
    return 2 * x.reshape(-1).reshape(x.shape)


VERDICT = Proved("L2")
