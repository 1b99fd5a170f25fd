"""Wrong: the thread of the last element returns too."""

import tilelang.language as T

from verdicts import Refuted, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n,), "float32"), out: T.Tensor((n,), "float32")):
    with T.Kernel(T.ceildiv(n, 32), threads=32) as block:
        tx = T.get_thread_binding()
        if block * 32 + tx >= n - 1:
            T.thread_return()
        out[block * 32 + tx] = x[block * 32 + tx]


CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L1", coverage="every element of out is written")
