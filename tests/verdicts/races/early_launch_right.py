"""Right: a kernel that is launched early waits before it touches global memory."""

import tilelang.language as T

from verdicts import Proved, contract


@T.prim_func
def kernel(x: T.Tensor((4,), "float32"), out: T.Tensor((4,), "float32")):
    with T.Kernel(1, threads=4):
        y = T.alloc_fragment((4,), "float32")
        T.pdl_sync()
        T.copy(x, y)
        T.copy(y, out)


CONTRACT = contract(kernel, "out")


VERDICT = Proved("L1", unmodelled="tl.pdl_sync")
