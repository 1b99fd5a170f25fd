"""Right: both dimensions are summed over."""

import tilelang.language as T

from verdicts import Proved, contract


@T.prim_func
def kernel(x: T.Tensor((2, 2), "float32"), out: T.Tensor((2, 2), "float32")):
    with T.Kernel(2, threads=2) as r:
        i = T.get_thread_binding()
        out[r, i] = x[r, i] + (x[0, 0] + x[0, 1] + x[1, 0] + x[1, 1])


CONTRACT = contract(kernel, "out")


def reference(x):
    return x + x.sum((0, 1))


VERDICT = Proved("L2")
