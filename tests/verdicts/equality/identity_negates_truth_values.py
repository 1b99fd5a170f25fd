"""Refused: a truth value has no negative."""

import tilelang.language as T

from lemmata.reference.contract import Elements
from verdicts import Unsupported, contract

count = T.dynamic("count")


@T.prim_func
def kernel(x: T.Tensor((count,), "float32"), index: T.Tensor((count,), "int32"), out: T.Tensor((count,), "float32")):
    with T.Kernel(T.ceildiv(count, 128), threads=128) as block:
        i = block * 128 + T.get_thread_binding()
        if i < count:
            out[i] = x[i]


CONTRACT = contract(kernel, "out", elements={"index": Elements(0, 7)})


def reference(x, index):
    return x + (index >= 3) + (-(index >= 3))


VERDICT = Unsupported("L2", "arithmetic of truth values")
