"""Refused: for n = 1 the squeeze drops the rows, and x.squeeze(0)[..., 0:1].ndim is 1, not 2."""

import tilelang.language as T

from verdicts import Unsupported, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n, 4), "float32"), out: T.Tensor((n, 4), "float32")):
    with T.Kernel(n, threads=4) as r:
        i = T.get_thread_binding()
        out[r, i] = x[r, i] * 2.0


CONTRACT = contract(kernel, "out")


def reference(x):
    return x * x.squeeze(0).ndim


VERDICT = Unsupported("L2", "which may be 1")
