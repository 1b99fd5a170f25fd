"""Right: a float that is kept between constants fits 8 bits."""

import tilelang.language as T

from verdicts import Proved, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n,), "float32"), out: T.Tensor((n,), "int8")):
    with T.Kernel(n, threads=1) as i:
        out[i] = T.cast(T.round(T.min(T.max(x[i], -127.0), 127.0)), "int8")


CONTRACT = contract(kernel, "out")
VERDICT = Proved("L0")
