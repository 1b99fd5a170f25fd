"""Wrong: the last 8 of 4 columns are 4."""

import tilelang.language as T

from verdicts import Unproved, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n, 4), "float32"), out: T.Tensor((n, 4), "float32")):
    with T.Kernel(n, threads=4) as r:
        i = T.get_thread_binding()
        out[r, i] = x[r, i] * 8.0


CONTRACT = contract(kernel, "out")


def reference(x):
    return x * x[:, -8:].shape[1]


VERDICT = Unproved("L2", equivalence="out")
