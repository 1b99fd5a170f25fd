"""Wrong: the reference is finite everywhere, the kernel is not."""

import tilelang.language as T

from lemmata.reference.contract import Elements, Size
from verdicts import Unproved, contract

rows = T.dynamic("rows")


@T.prim_func
def kernel(x: T.Tensor((rows, 32), "float32"), first: T.Tensor((rows,), "int32"), out: T.Tensor((rows, 32), "float32")):
    with T.Kernel(rows, threads=32) as row:
        for j in T.Parallel(32):
            seen = j < (first[row] + 2) // 4
            out[row, j] = T.if_then_else(seen, x[row, j], -T.infinity("float32"))


CONTRACT = contract(kernel, "out", sizes={"rows": Size(0, 2**20)}, elements={"first": Elements(0, 2**30)})


def reference(x, first):
    return x


VERDICT = Unproved("L2", equivalence="out")
