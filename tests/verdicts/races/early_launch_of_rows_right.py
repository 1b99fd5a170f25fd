"""Right: every block waits before it touches global memory."""

import tilelang.language as T

from verdicts import Proved, contract

S = T.dynamic("S")


@T.prim_func
def kernel(x: T.Tensor((S, 4), "float32"), out: T.Tensor((S, 4), "float32")):
    with T.Kernel(S, threads=4) as s:
        y = T.alloc_fragment((4,), "float32")
        T.pdl_sync()
        T.copy(x[s, :], y)
        T.copy(y, out[s, :])


CONTRACT = contract(kernel, "out")


VERDICT = Proved("L1", unmodelled="tl.pdl_sync")
