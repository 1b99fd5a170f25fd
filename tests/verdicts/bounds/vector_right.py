"""Right: the guard admits four elements at a time."""

import tilelang.language as T

from verdicts import Proved, contract

count = T.dynamic("count")


@T.prim_func
def kernel(x: T.Tensor((count,), "float32"), out: T.Tensor((count,), "float32")):
    with T.Kernel(T.ceildiv(count, 128), threads=32) as block:
        first = (block * 32 + T.get_thread_binding()) * 4
        if first + 4 <= count:
            for j in T.vectorized(4):
                out[first + j] = x[first + j]


CONTRACT = contract(kernel, "out")
VERDICT = Proved("L0")
