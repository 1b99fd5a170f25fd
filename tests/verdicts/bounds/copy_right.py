"""Right: the guard is exactly the number of elements."""

import tilelang.language as T

from verdicts import Proved, contract

count = T.dynamic("count")


@T.prim_func
def kernel(x: T.Tensor((count,), "float32"), out: T.Tensor((count,), "float32")):
    with T.Kernel(T.ceildiv(count, 128), threads=128) as block:
        i = block * 128 + T.get_thread_binding()
        if i < count:
            out[i] = x[i]


CONTRACT = contract(kernel, "out")
VERDICT = Proved("L0")
