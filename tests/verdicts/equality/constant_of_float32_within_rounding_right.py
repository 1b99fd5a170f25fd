"""Right: the constant is the reference's up to its rounding in float32, and the report says by how much."""

import tilelang.language as T

from verdicts import Proved, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n,), "float32"), out: T.Tensor((n,), "float32")):
    with T.Kernel(n, threads=1) as i:
        out[i] = x[i] * T.float32(1.5)


CONTRACT = contract(kernel, "out")


def reference(x):
    return x * 1.5000001


VERDICT = Proved("L2", says="constant")
