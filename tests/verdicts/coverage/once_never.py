"""Wrong: the contract calls x an output too, and the kernel does not write it."""

import tilelang.language as T

from verdicts import Refuted, contract

count = T.dynamic("count")


@T.prim_func
def kernel(x: T.Tensor((count,), "float32"), out: T.Tensor((count,), "float32")):
    with T.Kernel(T.ceildiv(count, 32), threads=32) as block:
        i = block * 32 + T.get_thread_binding()
        if i < count:
            out[i] = x[i]


CONTRACT = contract(kernel, "x", "out")
VERDICT = Refuted("L1", when="0 <= x.0 < count", coverage="every element of x is written")
