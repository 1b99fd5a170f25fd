"""Refused: a slice of at most 100 rows has n of them where n < 100; the kernel multiplies by 100."""

import tilelang.language as T

from verdicts import Unsupported, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n, 4), "float32"), out: T.Tensor((n, 4), "float32")):
    with T.Kernel(n, threads=4) as r:
        i = T.get_thread_binding()
        out[r, i] = x[r, i] * 100.0


CONTRACT = contract(kernel, "out")


def reference(x):
    return x * x[:100].shape[0]


VERDICT = Unsupported("L2", "which may be outside")
