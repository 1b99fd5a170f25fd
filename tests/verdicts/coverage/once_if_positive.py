"""Wrong: an element is written only where x is positive."""

import tilelang.language as T

from verdicts import Refuted, contract

count = T.dynamic("count")


@T.prim_func
def kernel(x: T.Tensor((count,), "float32"), out: T.Tensor((count,), "float32")):
    with T.Kernel(T.ceildiv(count, 32), threads=32) as block:
        i = block * 32 + T.get_thread_binding()
        if i < count and x[i] > 0:
            out[i] = x[i]


CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L1", coverage="every element of out is written")
