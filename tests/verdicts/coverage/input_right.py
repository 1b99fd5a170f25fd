"""Right: the input is only read."""

import tilelang.language as T

from verdicts import Proved, contract


@T.prim_func
def kernel(x: T.Tensor((32,), "float32"), out: T.Tensor((32,), "float32")):
    with T.Kernel(1, threads=32):
        tx = T.get_thread_binding()
        out[tx] = x[tx]


CONTRACT = contract(kernel, "out")
VERDICT = Proved("L1")
