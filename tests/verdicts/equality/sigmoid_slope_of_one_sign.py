"""Wrong: the second factor is the sigmoid of x, not of -x."""

import tilelang.language as T
import torch

from verdicts import Unproved, contract


@T.prim_func
def kernel(x: T.Tensor((8,), "float32"), out: T.Tensor((8,), "float32")):
    with T.Kernel(1, threads=8):
        for i in T.Parallel(8):
            out[i] = T.sigmoid(x[i]) * T.sigmoid(x[i])


CONTRACT = contract(kernel, "out")


def reference(x):
    return torch.sigmoid(x) * (1 - torch.sigmoid(x))


VERDICT = Unproved("L2", equivalence="out")
