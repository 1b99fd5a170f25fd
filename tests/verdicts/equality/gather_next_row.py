"""Wrong: the row after the one that is meant is read."""

import tilelang.language as T
import torch

from lemmata.reference.contract import Elements, Size
from verdicts import Unproved, contract

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
                kept = table[T.max(indices[row], 0) + 1, j]
                out[row, j] = T.if_then_else(indices[row] >= 0, kept, 0.0)


CONTRACT = contract(
    kernel, "out", sizes={"entries": Size(low=1)}, elements={"indices": Elements(low=-1, high="entries")}
)


def reference(table, indices):
    return torch.where((indices >= 0)[:, None], table[indices.clamp(min=0).long()], 0.0)


VERDICT = Unproved("L2", equivalence="out")
