"""Right: both logarithms at one place in the source are guarded."""

import tilelang.language as T
import torch

from verdicts import Proved, contract


@T.macro
def put(r, x, i):
    r[0] = T.log(x[i])


@T.prim_func
def kernel(x: T.Tensor((8,), "float32"), out: T.Tensor((8,), "float32")):
    with T.Kernel(1, threads=8):
        i = T.get_thread_binding()
        r = T.alloc_local((1,), "float32")
        r[0] = 0.0
        if x[i] > 0:
            put(r, x, i)
        if x[i] > 0:
            put(r, x, i)
        out[i] = T.if_then_else(x[i] > 0, r[0], 0.0)


CONTRACT = contract(kernel, "out")


def reference(x):
    return torch.where(x > 0, x.log(), 0)


VERDICT = Proved("L2", "range")
