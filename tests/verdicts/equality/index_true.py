"""Refused: x[True] is x with one more dimension, not x[1]."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import Unsupported, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n, 4), "float32"), out: T.Tensor((n, 4), "float32")):
    with T.Kernel(n, threads=4) as r:
        i = T.get_thread_binding()
        out[r, i] = x[r, i] + x[1, 0]


CONTRACT = contract(kernel, "out", sizes={"n": Size(2, 2**20)})


def reference(x):
    return x + x[True][0]


VERDICT = Unsupported("L2", "index")
