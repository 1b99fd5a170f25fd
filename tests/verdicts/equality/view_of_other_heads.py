"""Wrong: the reference takes rows apart into eight heads of four."""

import tilelang.language as T

from verdicts import Unproved, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n, 32), "float32"), w: T.Tensor((4,), "float32"), out: T.Tensor((n, 32), "float32")):
    with T.Kernel(n, threads=32) as r:
        for h, d in T.Parallel(4, 8):
            out[r, h * 8 + d] = x[r, h * 8 + d] * w[h]


CONTRACT = contract(kernel, "out")


def reference(x, w):
    return (x.view(-1, 8, 4) * w).flatten(1)


VERDICT = Unproved("L2", equivalence="out")
