"""Refused: the reference casts a sum of bytes to 8 bits, where it may wrap, and compares it."""

import tilelang.language as T
import torch

from verdicts import Unsupported, contract


@T.prim_func
def kernel(x: T.Tensor((4, 2), "int8"), out: T.Tensor((4,), "int32")):
    with T.Kernel(4, threads=1) as i:
        total = T.cast(x[i, 0], "int32") + T.cast(x[i, 1], "int32")
        out[i] = T.if_then_else(total >= 0, 1, 0)


CONTRACT = contract(kernel, "out")


def reference(x):
    return torch.where(x.sum(-1).to(torch.int8) >= 0, 1, 0).int()


VERDICT = Unsupported("L2", "where integers may wrap")
