"""Right: the private index is set before it is used, whatever the sizes."""

import tilelang.language as T

from verdicts import Proved, contract

N = T.dynamic("N")


@T.prim_func
def kernel(x: T.Tensor((N,), "float32"), out: T.Tensor((N,), "float32")):
    with T.Kernel(N, threads=1) as i:
        c = T.alloc_local((4,), "int32")
        for j in T.serial(4):
            c[j] = -1
        for j in T.serial(N):
            c[j % 4] += 1
        out[i] = T.if_then_else(c[i % 4] >= 0, x[c[i % 4]], 0.0)


CONTRACT = contract(kernel, "out")
VERDICT = Proved("L0")
