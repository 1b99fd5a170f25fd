"""Wrong: in float64 the constant is another one than the reference's."""

import tilelang.language as T

from verdicts import Unproved, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n,), "float64"), out: T.Tensor((n,), "float64")):
    with T.Kernel(n, threads=1) as i:
        out[i] = x[i] * T.float64(1.0000001)


CONTRACT = contract(kernel, "out")


def reference(x):
    return x


VERDICT = Unproved("L2", equivalence="out")
