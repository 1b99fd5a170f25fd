"""Refused: for n = 0 the rows from 1 on are 0, not -1."""

import tilelang.language as T

from verdicts import Unsupported, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n, 4), "float32"), y: T.Tensor((4,), "float32"), out: T.Tensor((4,), "float32")):
    with T.Kernel(1, threads=4):
        i = T.get_thread_binding()
        out[i] = y[i] * T.cast(n - 1, "float32")


CONTRACT = contract(kernel, "out")


def reference(x, y):
    return y * x[1:].shape[0]


VERDICT = Unsupported("L2", "which may be outside")
