"""Right: the private index is set on every path."""

import tilelang.language as T

from verdicts import Proved, contract

N = T.dynamic("N")


@T.prim_func
def kernel(x: T.Tensor((N,), "float32"), out: T.Tensor((N,), "float32")):
    with T.Kernel(N, threads=1) as i:
        c = T.alloc_local((1,), "int32")
        c[0] = 0
        if N > 5:
            c[0] = 5
        out[i] = x[c[0]]


CONTRACT = contract(kernel, "out")
VERDICT = Proved("L0")
