"""Right: the output is contiguous."""

import tilelang.language as T

from verdicts import Proved, contract

rows = T.dynamic("rows")


@T.prim_func
def kernel(x: T.Tensor((rows, 4), "float32"), out: T.Tensor((rows, 4), "float32")):
    with T.Kernel(rows, threads=4) as row:
        out[row, T.get_thread_binding()] = x[row, T.get_thread_binding()]


CONTRACT = contract(kernel, "out")
VERDICT = Proved("L0")
