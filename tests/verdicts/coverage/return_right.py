"""Right: threads beyond the end return before they touch anything."""

import tilelang.language as T

from verdicts import Proved, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n,), "float32"), out: T.Tensor((n,), "float32")):
    with T.Kernel(T.ceildiv(n, 32), threads=32) as block:
        tx = T.get_thread_binding()
        if block * 32 + tx >= n:
            T.thread_return()
        out[block * 32 + tx] = x[block * 32 + tx]


CONTRACT = contract(kernel, "out")
VERDICT = Proved("L0", "L1")
