"""Wrong: the contract admits sizes that do not fit 32 bits, to which the launcher narrows them."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import Refuted, contract

count = T.dynamic("count")


@T.prim_func
def kernel(x: T.Tensor((count,), "float32"), out: T.Tensor((count,), "float32")):
    with T.Kernel(T.ceildiv(count, 128), threads=32) as block:
        first = (block * 32 + T.get_thread_binding()) * 4
        if first + 4 <= count:
            for j in T.vectorized(4):
                out[first + j] = x[first + j]


CONTRACT = contract(kernel, "out", sizes={"count": Size(high=2**32)})
VERDICT = Refuted(
    "L0", cast="count fits int32, to which the launcher narrows it", overflow="count + 127 does not overflow int32"
)
