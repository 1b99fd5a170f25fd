"""Refused: the reference returns one element."""

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
    return x[:1]


VERDICT = Unsupported("L2", "a slice at 1 of a dimension of count, which may be outside")
