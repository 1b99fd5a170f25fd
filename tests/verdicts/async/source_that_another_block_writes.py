"""Wrong: the copy's source is a row that another block writes."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import ASYNC, MANUAL, Refuted, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n, 128), "float32"), rows: T.Tensor((n, 128), "float32"), out: T.Tensor((n, 128), "float32")):
    with T.Kernel(n, threads=128) as block:
        tx = T.get_thread_binding()
        row = T.alloc_shared((128,), "float32")
        rows[block, tx] = x[block, tx]
        for i in T.Parallel(128, annotations=ASYNC):
            row[i] = rows[T.if_then_else(block + 1 < n, block + 1, 0), i]
        T.ptx_commit_group()
        T.ptx_wait_group(0)
        T.sync_threads()
        out[block, tx] = row[tx]


CONTRACT = contract(kernel, "rows", "out", sizes={"n": Size(2, 2**20)})
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Refuted("L1", race="rows")
