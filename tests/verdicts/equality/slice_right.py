"""Right: with 8 rows or more the first 8 are 8."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import Proved, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n, 4), "float32"), out: T.Tensor((n, 4), "float32")):
    with T.Kernel(n, threads=4) as r:
        i = T.get_thread_binding()
        out[r, i] = x[r, i] * 8.0


CONTRACT = contract(kernel, "out", sizes={"n": Size(8, 2**20)})


def reference(x):
    return x * x[:8].shape[0]


VERDICT = Proved("L2")
