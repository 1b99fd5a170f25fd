"""Right: the kernel takes square matrices, and so does the contract."""

import tilelang.language as T

from verdicts import Proved, contract

m = T.dynamic("m")


@T.prim_func
def kernel(x: T.Tensor((m, m), "float32"), out: T.Tensor((m, m), "float32")):
    with T.Kernel(m, threads=32) as row:
        for column in T.serial(m):
            out[row, column] = x[row, column]


CONTRACT = contract(kernel, "out")
VERDICT = Proved("L0")
