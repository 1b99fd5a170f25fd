"""Wrong: each block goes one row into the next block's share."""

import tilelang.language as T

from verdicts import Refuted, contract

rows = T.dynamic("rows")


@T.prim_func
def kernel(x: T.Tensor((rows, 32), "float32"), out: T.Tensor((rows, 32), "float32")):
    with T.Kernel(8, threads=32) as block:
        tx = T.get_thread_binding()
        share = T.ceildiv(rows, 8)
        for k in T.serial(T.max(T.min(share + 1, rows - block * share), 0)):
            out[block * share + k, tx] = x[block * share + k, tx]


CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L1", uniqueness="no two executions write the same element of out")
