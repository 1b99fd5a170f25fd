"""Refused: the reference multiplies in 8 bits, and may wrap."""

import tilelang.language as T

from verdicts import Unsupported, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n,), "int8"), w: T.Tensor((n,), "int8"), out: T.Tensor((n,), "int32")):
    with T.Kernel(n, threads=1) as i:
        out[i] = T.cast(x[i], "int32") * T.cast(w[i], "int32")


CONTRACT = contract(kernel, "out")


def reference(x, w):
    return x * w


VERDICT = Unsupported("L2", "the reference's of torch.int8")
