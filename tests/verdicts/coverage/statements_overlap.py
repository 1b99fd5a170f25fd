"""Wrong: the second statement begins in the first one's half and leaves out the last column."""

import tilelang.language as T

from verdicts import Refuted, contract

count = T.dynamic("count")


@T.prim_func
def kernel(x: T.Tensor((count, 8), "float32"), out: T.Tensor((count, 8), "float32")):
    with T.Kernel(count, threads=32) as block:
        tx = T.get_thread_binding()
        if tx < 4:
            out[block, tx] = x[block, tx]
        if tx >= 8 and tx < 12:
            out[block, tx - 5] = x[block, tx - 4]


CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L1", coverage="every element of out is written", uniqueness="no element of out is written again")
