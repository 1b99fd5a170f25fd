"""Wrong: the counter counts to a number read from memory, and is used as an index."""

import tilelang.language as T

from lemmata.reference.contract import Elements, Size
from verdicts import Refuted, contract

n, entries = T.dynamic("n"), T.dynamic("entries")


@T.prim_func
def kernel(lens: T.Tensor((n,), "int32"), tab: T.Tensor((entries,), "float32"), out: T.Tensor((n,), "float32")):
    with T.Kernel(n, threads=1) as t:
        c = T.alloc_local((1,), "int32")
        c[0] = 0
        length = lens[t]
        for _ in T.serial(length):
            c[0] += 1
        out[t] = tab[c[0]]


CONTRACT = contract(
    kernel, "out", sizes={"n": Size(0, 2**20), "entries": Size(low=1)}, elements={"lens": Elements(low=0, high=2**20)}
)
VERDICT = Refuted("L0", bounds="read of tab")
