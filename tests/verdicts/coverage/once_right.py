"""Right: every element is written once."""

import tilelang.language as T

from verdicts import Proved, contract

count = T.dynamic("count")


@T.prim_func
def kernel(x: T.Tensor((count,), "float32"), out: T.Tensor((count,), "float32")):
    with T.Kernel(T.ceildiv(count, 32), threads=32) as block:
        i = block * 32 + T.get_thread_binding()
        if i < count:
            out[i] = x[i]


CONTRACT = contract(kernel, "out")
VERDICT = Proved("L1")
