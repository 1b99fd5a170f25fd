"""Right: the data say what is written, not where."""

import tilelang.language as T

from verdicts import Proved, contract

n = T.dynamic("n")


@T.prim_func
def kernel(at: T.Tensor((n,), "int32"), out: T.Tensor((n,), "float32")):
    with T.Kernel(T.ceildiv(n, 32), threads=32) as block:
        i = block * 32 + T.get_thread_binding()
        if i < n:
            out[i] = T.cast(at[i], "float32")


CONTRACT = contract(kernel, "out")
VERDICT = Proved("L1")
