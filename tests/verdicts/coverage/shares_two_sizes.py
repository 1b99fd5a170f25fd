"""Wrong: blocks begin where shares of another size do."""

import tilelang.language as T

from verdicts import Refuted, contract

rows = T.dynamic("rows")


@T.prim_func
def kernel(x: T.Tensor((rows, 32), "float32"), out: T.Tensor((rows, 32), "float32")):
    with T.Kernel(8, threads=32) as block:
        tx = T.get_thread_binding()
        share = T.ceildiv(rows, 8)
        for k in T.serial(T.max(T.min(share, rows - block * share), 0)):
            out[block * (share + 1) + k, tx] = x[block * share + k, tx]


CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L1", coverage="every element of out is written")
