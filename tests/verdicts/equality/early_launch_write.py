"""Refused: what is written before the wait an earlier kernel may still read."""

import tilelang.language as T

from verdicts import Unsupported, contract


@T.prim_func
def kernel(x: T.Tensor((4,), "float32"), out: T.Tensor((4,), "float32")):
    with T.Kernel(1, threads=4):
        y = T.alloc_fragment((4,), "float32")
        T.fill(out, 0)
        T.pdl_sync()
        T.copy(x, y)
        T.copy(y, out)


CONTRACT = contract(kernel, "out")


def reference(x):
    return x.clone()


VERDICT = Unsupported("L2", "tl.pdl_sync after global memory has been accessed")
