"""Right: einsum multiplies column by column where both have two."""

import tilelang.language as T
import torch

from verdicts import Proved, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n, 2), "float32"), y: T.Tensor((n, 2), "float32"), out: T.Tensor((n,), "float32")):
    with T.Kernel(n, threads=1) as r:
        out[r] = x[r, 0] * y[r, 0] + x[r, 1] * y[r, 1]


CONTRACT = contract(kernel, "out")


def reference(x, y):
    return torch.einsum("ij,ij->i", x, y)


VERDICT = Proved("L2")
