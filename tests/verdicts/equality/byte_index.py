"""Refused: a tensor of bytes as an index is a mask: u = [1, 1, 1, 1] selects all four rows."""

import tilelang.language as T

from lemmata.reference.contract import Elements
from verdicts import Unsupported, contract

n = T.dynamic("n")


@T.prim_func
def kernel(m: T.Tensor((4, 4), "float32"), u: T.Tensor((4,), "uint8"), out: T.Tensor((4, 4), "float32")):
    with T.Kernel(4, threads=4) as r:
        i = T.get_thread_binding()
        out[r, i] = m[T.cast(u[r], "int32"), i]


CONTRACT = contract(kernel, "out", elements={"u": Elements(0, 4)})


def reference(m, u):
    return m[u]


VERDICT = Unsupported("L2", "index")
