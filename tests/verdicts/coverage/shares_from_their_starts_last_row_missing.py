"""Wrong: each block leaves the last row of its share to the next one, which begins after it."""

import tilelang.language as T

from verdicts import Refuted, contract

rows = T.dynamic("rows")


@T.prim_func
def kernel(x: T.Tensor((rows, 32), "float32"), out: T.Tensor((rows, 32), "float32")):
    with T.Kernel(8, threads=32) as block:
        tx = T.get_thread_binding()
        share = T.ceildiv(rows, 8)
        for row in T.serial(T.min(share * block, rows), T.min(share * (block + 1) - 1, rows)):
            out[row, tx] = x[row, tx]


CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L1", coverage="every element of out is written")
