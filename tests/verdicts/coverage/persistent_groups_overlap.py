"""Wrong: a group begins with the last turn of the one before."""

import tilelang.language as T

from verdicts import Refuted, contract

count = T.dynamic("count")


@T.prim_func
def kernel(x: T.Tensor((count,), "float32"), out: T.Tensor((count,), "float32")):
    with T.Kernel(T.ceildiv(count, 7 * 132 * 128), 132, threads=128) as (group, block):
        tx = T.get_thread_binding()
        for k in T.serial(T.min(T.ceildiv(count, 132 * 128) - group * 7, 8)):
            i = ((group * 7 + k) * 132 + block) * 128 + tx
            if i < count:
                out[i] = x[i]


CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L1", uniqueness="no two executions write the same element of out")
