"""Right: the counter counts to the size, which a variable of another name holds."""

import tilelang.language as T

from lemmata.reference.contract import Elements
from verdicts import Proved, contract

size = T.dynamic("n")


@T.prim_func
def kernel(lens: T.Tensor((size,), "int32"), tab: T.Tensor((size,), "float32"), out: T.Tensor((size,), "float32")):
    with T.Kernel(size, threads=1) as t:
        c = T.alloc_local((1,), "int32")
        c[0] = -1
        length = size
        for _ in T.serial(length):
            c[0] += 1
        out[t] = T.if_then_else(c[0] >= 0, tab[c[0]], 0.0)


CONTRACT = contract(kernel, "out", elements={"lens": Elements(low=0, high=2**20)})
VERDICT = Proved("L0")
