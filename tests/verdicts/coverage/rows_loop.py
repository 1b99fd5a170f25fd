"""Wrong: the loop over the columns leaves out the last."""

import tilelang.language as T

from verdicts import Refuted, contract

count = T.dynamic("count")


@T.prim_func
def kernel(x: T.Tensor((count, 4, 4), "float32"), out: T.Tensor((count, 4, 4), "float32")):
    with T.Kernel(T.ceildiv(count, 32), threads=32) as block:
        matrix = block * 32 + T.get_thread_binding()
        if matrix < count:
            for i in T.unroll(4):
                for j in T.unroll(3):
                    out[matrix, i, j] = x[matrix, i, j]


CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L1", coverage="every element of out is written")
