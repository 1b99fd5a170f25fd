"""Refused: torch sums over all dimensions where dim is (); the kernel sums over none."""

import tilelang.language as T

from verdicts import Unsupported, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((4, 4), "float32"), out: T.Tensor((4, 4), "float32")):
    with T.Kernel(4, threads=4) as r:
        i = T.get_thread_binding()
        out[r, i] = x[r, i] * 2.0


CONTRACT = contract(kernel, "out")


def reference(x):
    return x + x.sum(())


VERDICT = Unsupported("L2", "a reduction over no dimensions")
