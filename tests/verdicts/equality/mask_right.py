"""Right: a product with a truth value is a mask."""

import tilelang.language as T

from lemmata.reference.contract import Elements
from verdicts import Proved, contract

count = T.dynamic("count")


@T.prim_func
def kernel(x: T.Tensor((count,), "float32"), index: T.Tensor((count,), "int32"), out: T.Tensor((count,), "float32")):
    with T.Kernel(T.ceildiv(count, 128), threads=128) as block:
        i = block * 128 + T.get_thread_binding()
        if i < count:
            out[i] = T.if_then_else(index[i] != 0, x[i], 0.0)


CONTRACT = contract(kernel, "out", elements={"index": Elements(0, 7)})


def reference(x, index):
    return x * (index != 0)


VERDICT = Proved("L0", "L1", "L2", "range")
