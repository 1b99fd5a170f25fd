"""Wrong: the constant differs from that of the reference by more than its rounding in float32."""

import tilelang.language as T

from verdicts import Unproved, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n,), "float32"), out: T.Tensor((n,), "float32")):
    with T.Kernel(n, threads=1) as i:
        out[i] = x[i] * T.float32(1.5)


CONTRACT = contract(kernel, "out")


def reference(x):
    return x * 1.5000004


VERDICT = Unproved("L2", equivalence="out")
