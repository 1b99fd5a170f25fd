"""Wrong: what is masked is 0, in the reference -inf."""

import tilelang.language as T
import torch

from lemmata.reference.contract import Elements, Size
from verdicts import Unproved, contract

rows = T.dynamic("rows")


@T.prim_func
def kernel(x: T.Tensor((rows, 32), "float32"), first: T.Tensor((rows,), "int32"), out: T.Tensor((rows, 32), "float32")):
    with T.Kernel(rows, threads=32) as row:
        for j in T.Parallel(32):
            seen = j < (first[row] + 2) // 4
            out[row, j] = T.if_then_else(seen, x[row, j], T.float32(0))


CONTRACT = contract(kernel, "out", sizes={"rows": Size(0, 2**20)}, elements={"first": Elements(0, 2**30)})


def reference(x, first):
    seen = torch.arange(32, device=x.device) < ((first + 2) // 4).unsqueeze(-1)
    return torch.where(seen, x, float("-inf"))


VERDICT = Unproved("L2", equivalence="out")
