"""Refused: truth values are padded with True, where the kernel has 2."""

import tilelang.language as T
import torch

from verdicts import Unsupported, contract

n = T.dynamic("n")


@T.prim_func
def kernel(a: T.Tensor((n, 4), "int32"), out: T.Tensor((n, 5), "float32")):
    with T.Kernel(n, threads=5) as r:
        i = T.get_thread_binding()
        if i < 4:
            out[r, i] = T.if_then_else(a[r, i] > 0, 1.0, 0.0)
        else:
            out[r, i] = 2.0


CONTRACT = contract(kernel, "out")


def reference(a):
    return torch.nn.functional.pad(a > 0, (0, 1), value=2.0).float()


VERDICT = Unsupported("L2", "2.0 written into")
