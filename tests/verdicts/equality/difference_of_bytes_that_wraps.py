"""Refused: the reference subtracts in 8 bits without a sign, and may wrap."""

import tilelang.language as T

from verdicts import Unsupported, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n,), "uint8"), w: T.Tensor((n,), "uint8"), out: T.Tensor((n,), "int32")):
    with T.Kernel(n, threads=1) as i:
        out[i] = T.cast(x[i], "int32") - 200


CONTRACT = contract(kernel, "out")


def reference(x, w):
    return x - 200


VERDICT = Unsupported("L2", "the reference's of torch.uint8")
