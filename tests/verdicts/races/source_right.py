"""Right: the row that is loaded is an input, which nobody writes."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import MANUAL, Proved, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n, 128), "float32"), rows: T.Tensor((n, 128), "float32"), out: T.Tensor((n, 128), "float32")):
    with T.Kernel(n, threads=128) as block:
        tx = T.get_thread_binding()
        row = T.alloc_shared((128,), "float32")
        rows[block, tx] = x[block, tx]
        row[tx] = x[n - 1 - block, tx]
        T.sync_threads()
        out[block, tx] = row[tx]


CONTRACT = contract(kernel, "rows", "out", sizes={"n": Size(0, 2**20)})
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Proved("L1")
