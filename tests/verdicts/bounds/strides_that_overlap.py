"""Refused: the rows of the output overlap."""

import tilelang.language as T

from verdicts import Unsupported, contract

rows = T.dynamic("rows")


@T.prim_func
def kernel(x: T.Tensor((rows, 4), "float32"), out: T.StridedTensor((rows, 4), (2, 1), "float32")):
    with T.Kernel(rows, threads=4) as row:
        out[row, T.get_thread_binding()] = x[row, T.get_thread_binding()]


CONTRACT = contract(kernel, "out")
VERDICT = Unsupported("L0", "strides")
