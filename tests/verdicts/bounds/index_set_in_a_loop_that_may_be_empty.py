"""Wrong: the loop that sets the private index may be empty."""

import tilelang.language as T

from verdicts import Refuted, contract

N = T.dynamic("N")
m = T.dynamic("m")


@T.prim_func
def kernel(x: T.Tensor((N,), "float32"), y: T.Tensor((m,), "float32"), out: T.Tensor((N,), "float32")):
    with T.Kernel(N, threads=1) as i:
        c = T.alloc_local((1,), "int32")
        for _ in T.serial(m):
            c[0] = 0
        out[i] = x[c[0]] + y[0]


CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L0", bounds="read of x")
