"""Wrong: the grid is rounded down, so the ragged block is missing."""

import tilelang.language as T

from verdicts import Refuted, contract

count = T.dynamic("count")


@T.prim_func
def kernel(x: T.Tensor((count,), "float32"), out: T.Tensor((count,), "float32")):
    with T.Kernel(count // 128, threads=128) as block:
        i = block * 128 + T.get_thread_binding()
        if i < count:
            out[i] = x[i]


CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L1", coverage="every element of out is written")
