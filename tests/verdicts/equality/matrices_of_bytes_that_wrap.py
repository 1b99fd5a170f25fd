"""Refused: the reference multiplies matrices in 8 bits, and may wrap."""

import tilelang.language as T

from verdicts import Unsupported, contract


@T.prim_func
def kernel(x: T.Tensor((4, 4), "int8"), w: T.Tensor((4, 4), "int8"), out: T.Tensor((4, 4), "int32")):
    with T.Kernel(1, threads=16):
        i, j = T.get_thread_binding() // 4, T.get_thread_binding() % 4
        acc = T.alloc_local((1,), "int32")
        acc[0] = 0
        for k in T.unroll(4):
            acc[0] += T.cast(x[i, k], "int32") * T.cast(w[k, j], "int32")
        out[i, j] = acc[0]


CONTRACT = contract(kernel, "out")


def reference(x, w):
    return x @ w


VERDICT = Unsupported("L2", "the reference's of torch.int8")
