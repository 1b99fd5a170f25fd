"""Right: the reference subtracts in 32 bits, as the kernel does."""

import tilelang.language as T

from verdicts import Proved, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n,), "uint8"), w: T.Tensor((n,), "uint8"), out: T.Tensor((n,), "int32")):
    with T.Kernel(n, threads=1) as i:
        out[i] = T.cast(x[i], "int32") - 200


CONTRACT = contract(kernel, "out")


def reference(x, w):
    return x.int() - 200


VERDICT = Proved("L2")
