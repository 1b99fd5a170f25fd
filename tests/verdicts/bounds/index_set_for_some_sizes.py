"""Wrong: with 5 elements or fewer the private index is never set."""

import tilelang.language as T

from verdicts import Refuted, contract

N = T.dynamic("N")


@T.prim_func
def kernel(x: T.Tensor((N,), "float32"), out: T.Tensor((N,), "float32")):
    with T.Kernel(N, threads=1) as i:
        c = T.alloc_local((1,), "int32")
        if N > 5:
            c[0] = 0
        out[i] = x[c[0]]


CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L0", bounds="read of x")
