"""Refused: the contract admits any two sizes, the kernel equal ones only."""

import tilelang.language as T

from verdicts import Unsupported, contract

m = T.dynamic("m")


@T.prim_func
def kernel(x: T.Tensor((m, m), "float32"), out: T.Tensor((m, m), "float32")):
    with T.Kernel(m, threads=32) as row:
        for column in T.serial(m):
            out[row, column] = x[row, column]


CONTRACT = contract(kernel, "out", shapes={"x": "m n", "out": "m n"})
VERDICT = Unsupported("L0", "which the contract leaves open")
