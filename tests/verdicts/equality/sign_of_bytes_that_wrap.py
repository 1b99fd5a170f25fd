"""Refused: the reference asks for the sign of a product in 8 bits, which may wrap."""

import tilelang.language as T
import torch

from verdicts import Unsupported, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n,), "int8"), out: T.Tensor((n,), "int32")):
    with T.Kernel(n, threads=1) as i:
        out[i] = T.if_then_else(T.cast(x[i], "int32") * T.cast(x[i], "int32") >= 0, 1, 0)


CONTRACT = contract(kernel, "out")


def reference(x):
    return torch.where(x * x >= 0, 1, 0).int()


VERDICT = Unsupported("L2", "in torch.int8, where integers may wrap")
