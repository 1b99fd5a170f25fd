"""Right: a tensor of 32-bit integers is an index."""

import tilelang.language as T

from lemmata.reference.contract import Elements
from verdicts import Proved, contract


@T.prim_func
def kernel(m: T.Tensor((4, 4), "float32"), u: T.Tensor((4,), "int32"), out: T.Tensor((4, 4), "float32")):
    with T.Kernel(4, threads=4) as r:
        i = T.get_thread_binding()
        out[r, i] = m[u[r], i]


CONTRACT = contract(kernel, "out", elements={"u": Elements(0, 4)})


def reference(m, u):
    return m[u]


VERDICT = Proved("L2")
