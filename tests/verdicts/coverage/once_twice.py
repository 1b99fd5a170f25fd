"""Wrong: a loop writes every element twice."""

import tilelang.language as T

from verdicts import Refuted, contract

count = T.dynamic("count")


@T.prim_func
def kernel(x: T.Tensor((count,), "float32"), out: T.Tensor((count,), "float32")):
    with T.Kernel(T.ceildiv(count, 32), threads=32) as block:
        i = block * 32 + T.get_thread_binding()
        if i < count:
            for k in T.serial(2):
                out[i] = x[i] + k


CONTRACT = contract(kernel, "out")
VERDICT = Refuted(
    "L1",
    coverage="writes no place of its tile of out twice",
    uniqueness="no two executions write the same element of out",
)
