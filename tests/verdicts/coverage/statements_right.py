"""Right: each of two statements writes half of every row."""

import tilelang.language as T

from verdicts import Proved, contract

count = T.dynamic("count")


@T.prim_func
def kernel(x: T.Tensor((count, 8), "float32"), out: T.Tensor((count, 8), "float32")):
    with T.Kernel(count, threads=32) as block:
        tx = T.get_thread_binding()
        if tx < 4:
            out[block, tx] = x[block, tx]
        if tx >= 8 and tx < 12:
            out[block, tx - 4] = x[block, tx - 4]


CONTRACT = contract(kernel, "out")
VERDICT = Proved("L1")
