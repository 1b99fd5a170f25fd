"""Refused: einsum repeats the one column of x[:, :1]; the kernel multiplies column by column."""

import tilelang.language as T
import torch

from verdicts import Unsupported, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n, 2), "float32"), y: T.Tensor((n, 2), "float32"), out: T.Tensor((n,), "float32")):
    with T.Kernel(n, threads=1) as r:
        out[r] = x[r, 0] * y[r, 0] + x[r, 1] * y[r, 1]


CONTRACT = contract(kernel, "out")


def reference(x, y):
    return torch.einsum("ij,ij->i", x[:, :1], y)


VERDICT = Unsupported("L2", "einsum of one dimension of several sizes")
