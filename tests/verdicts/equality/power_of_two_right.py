"""Right: e^x is 2^(x log2 e), whose constant is rounded to float32."""

import tilelang.language as T

from verdicts import Proved, contract


@T.prim_func
def kernel(x: T.Tensor((8,), "float32"), out: T.Tensor((8,), "float32")):
    with T.Kernel(1, threads=8):
        for i in T.Parallel(8):
            out[i] = T.exp2(x[i] * 1.44269504)


CONTRACT = contract(kernel, "out")


def reference(x):
    return x.exp()


VERDICT = Proved("L2")
