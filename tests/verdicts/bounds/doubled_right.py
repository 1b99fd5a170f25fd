"""Right: twice the index is kept in 64 bits."""

import tilelang.language as T

from verdicts import Proved, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n,), "float32"), out: T.Tensor((n,), "float32")):
    with T.Kernel(T.ceildiv(n, 128), threads=128) as block:
        at = T.alloc_var("int64")
        i = block * 128 + T.get_thread_binding()
        if i < n:
            at = T.cast(i, "int64") * 2 + 1
            out[i] = x[at // 2]


CONTRACT = contract(kernel, "out")
VERDICT = Proved("L0")
