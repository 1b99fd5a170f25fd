"""Right: 100 is an integer of 8 bits."""

import tilelang.language as T
import torch

from verdicts import Proved, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n,), "int8"), out: T.Tensor((n,), "int32")):
    with T.Kernel(n, threads=1) as i:
        out[i] = T.if_then_else(T.cast(x[i], "int32") >= 0, T.cast(x[i], "int32"), 100)


CONTRACT = contract(kernel, "out")


def reference(x):
    return torch.where(x >= 0, x, 100).int()


VERDICT = Proved("L2")
