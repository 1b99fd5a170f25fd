"""Refused: the reference casts to 8 bits, and may lose something."""

import tilelang.language as T
import torch

from verdicts import Unsupported, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n,), "int8"), w: T.Tensor((n,), "int8"), out: T.Tensor((n,), "int32")):
    with T.Kernel(n, threads=1) as i:
        out[i] = T.cast(x[i], "int32") * T.cast(w[i], "int32")


CONTRACT = contract(kernel, "out")


def reference(x, w):
    return (x.int() * w.int()).to(torch.int8).int()


VERDICT = Unsupported("L2", "in torch.int8, where integers may wrap")
