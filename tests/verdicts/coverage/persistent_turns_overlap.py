"""Wrong: 132 blocks step over 131 tiles, so the last takes the next turn of the first."""

import tilelang.language as T

from verdicts import Refuted, contract

count = T.dynamic("count")


@T.prim_func
def kernel(x: T.Tensor((count,), "float32"), out: T.Tensor((count,), "float32")):
    with T.Kernel(132, threads=128) as block:
        tx = T.get_thread_binding()
        for k in T.serial(T.ceildiv(count, 131 * 128)):
            i = (k * 131 + block) * 128 + tx
            if i < count:
                out[i] = x[i]


CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L1", uniqueness="no two executions write the same element of out")
