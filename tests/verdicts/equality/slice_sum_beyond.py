"""Refused: for n = 6 the rows 5 to 8 are one row, and the kernel adds three (beyond the end)."""

import tilelang.language as T

from verdicts import Unsupported, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n, 4), "float32"), out: T.Tensor((4,), "float32")):
    with T.Kernel(1, threads=4):
        i = T.get_thread_binding()
        out[i] = x[5, i] + x[6, i] + x[7, i]


CONTRACT = contract(kernel, "out")


def reference(x):
    return x[5:8].sum(0)


VERDICT = Unsupported("L2", "which may be outside")
