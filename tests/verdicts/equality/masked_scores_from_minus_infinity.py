"""Wrong: the running maximum may stay -inf, and -inf - -inf is no number."""

import tilelang.language as T
import torch

from verdicts import Refuted, contract


@T.prim_func
def kernel(x: T.Tensor((4,), "float32"), m: T.Tensor((4,), "int32"), out: T.Tensor((4,), "float32")):
    with T.Kernel(1, threads=4):
        s, top = T.alloc_fragment((1, 4), "float32"), T.alloc_fragment((1,), "float32")
        T.fill(top, -T.infinity("float32"))
        for i in T.Parallel(4):
            s[0, i] = T.if_then_else(m[i] >= 0, x[i], -T.infinity("float32"))
        T.reduce_max(s, top, dim=1, clear=False)
        for i in T.Parallel(4):
            out[i] = T.exp(s[0, i] - top[0]) * T.exp(top[0])


CONTRACT = contract(kernel, "out")


def reference(x, m):
    return torch.where(m >= 0, x.exp(), 0.0)


VERDICT = Refuted("L2", not_a_number="inf meets -inf")
