"""Right: 2 is an integer."""

import tilelang.language as T
import torch

from verdicts import Proved, contract

n = T.dynamic("n")


@T.prim_func
def kernel(a: T.Tensor((n, 4), "int32"), out: T.Tensor((n, 5), "float32")):
    with T.Kernel(n, threads=5) as r:
        i = T.get_thread_binding()
        out[r, i] = T.if_then_else(i < 4, T.cast(a[r, T.min(i, 3)], "float32"), 2.0)


CONTRACT = contract(kernel, "out")


def reference(a):
    return torch.nn.functional.pad(a, (0, 1), value=2).float()


VERDICT = Proved("L2")
