"""Right: rows from an offset on, a number that the kernel is given; the contract says how far it may reach."""

import tilelang.language as T

from lemmata.reference.contract import Contract, Size
from verdicts import Proved

rows, entries = T.dynamic("rows"), T.dynamic("entries")


@T.prim_func
def kernel(x: T.Tensor((entries, 32), "float32"), out: T.Tensor((rows, 32), "float32"), offset: T.int32):
    with T.Kernel(rows, threads=32) as block:
        tx = T.get_thread_binding()
        out[block, tx] = x[block + offset, tx]


CONTRACT = Contract.of(
    kernel,
    sizes={"rows": Size(0, 2**24), "entries": Size(0, 2**24), "offset": Size(0, 2**24)},
    outputs=["out"],
    relations=("offset + rows <= entries",),
    probes=({"rows": 5, "entries": 12, "offset": 7}, {"rows": 2**23, "entries": 2**24, "offset": 2**23}),
)
VERDICT = Proved("L0", "L1")
