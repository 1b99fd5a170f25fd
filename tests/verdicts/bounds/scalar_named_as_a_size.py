"""Refused: the number that the kernel is given bears the name of a size, and is not that."""

import tilelang.language as T

from lemmata.reference.contract import Contract, Size
from verdicts import Unsupported

count, entries = T.dynamic("rows"), T.dynamic("entries")


@T.prim_func
def kernel(x: T.Tensor((entries, 32), "float32"), out: T.Tensor((count, 32), "float32"), rows: T.int32):
    with T.Kernel(count, threads=32) as block:
        tx = T.get_thread_binding()
        out[block, tx] = x[block + rows, tx]


CONTRACT = Contract.of(
    kernel,
    sizes={"rows": Size(0, 2**24), "entries": Size(0, 2**24)},
    outputs=["out"],
    relations=("rows <= entries",),
    probes=({"rows": 5, "entries": 12}, {"rows": 2**23, "entries": 2**24}),
)
VERDICT = Unsupported("L0", "a scalar of the kernel, a size of the contract")
