"""Wrong: an index of -1 is used as it is."""

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
                out[row, j] = table[indices[row], j]


CONTRACT = contract(
    kernel, "out", sizes={"entries": Size(low=1)}, elements={"indices": Elements(low=-1, high="entries")}
)
VERDICT = Refuted("L0", bounds="read of table")
