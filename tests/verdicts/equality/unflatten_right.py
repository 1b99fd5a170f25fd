"""Right: rows of pairs, of which the reference adds each."""

import tilelang.language as T

from verdicts import Proved, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n, 16), "float32"), out: T.Tensor((n, 8), "float32")):
    with T.Kernel(n, threads=8) as r:
        for d in T.Parallel(8):
            out[r, d] = x[r, d * 2] + x[r, d * 2 + 1]


CONTRACT = contract(kernel, "out")


def reference(x):
    return x.unflatten(-1, (8, 2)).sum(-1)


VERDICT = Proved("L2")
