"""Wrong: the counter counts to a number read from memory, which bears the name of the size."""

import tilelang.language as T

from lemmata.reference.contract import Elements
from verdicts import Refuted, contract

size = T.dynamic("n")


@T.prim_func
def kernel(lens: T.Tensor((size,), "int32"), tab: T.Tensor((size,), "float32"), out: T.Tensor((size,), "float32")):
    with T.Kernel(size, threads=1) as t:
        c = T.alloc_local((1,), "int32")
        c[0] = -1
        n = lens[t]
        for _ in T.serial(n):
            c[0] += 1
        out[t] = T.if_then_else(c[0] >= 0, tab[c[0]], 0.0)


CONTRACT = contract(kernel, "out", elements={"lens": Elements(low=0, high=2**20)})
VERDICT = Refuted("L0", bounds="read of tab")
