"""Wrong: the contract admits no number of indices, so that it proves anything."""

import tilelang.language as T

from lemmata.reference.contract import Elements, Size
from verdicts import Refuted, contract

count, entries = T.dynamic("count"), T.dynamic("entries")


@T.prim_func
def kernel(
    table: T.Tensor((entries, 32), "float32"),
    indices: T.Tensor((count,), "int32"),
    out: T.Tensor((count, 32), "float32"),
):
    with T.Kernel(T.ceildiv(count, 8), threads=128) as block:
        for i, j in T.Parallel(8, 32):
            row = block * 8 + i
            if row < count:
                kept = table[T.max(indices[row], 0), j]
                out[row, j] = T.if_then_else(indices[row] >= 0, kept, 0.0)


CONTRACT = contract(
    kernel, "out", sizes={"count": Size(low=7, high=6)}, elements={"indices": Elements(low=-1, high="entries")}
)
VERDICT = Refuted("L0", hollow="no execution reaches this")
