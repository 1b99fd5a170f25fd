"""Right: each iteration reads its own element before it writes it."""

from dataclasses import replace

import tilelang.language as T

from verdicts import Proved, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n, 2), "float32"), out: T.Tensor((n, 2), "float32")):
    with T.Kernel(n, threads=1) as r:
        for i in T.Parallel(2):
            out[r, i] = x[r, i]
            x[r, i] = 1.0


CONTRACT = contract(kernel, "out", "x")
CONTRACT = replace(CONTRACT, inputs=CONTRACT.outputs[1:])


def reference(x):
    return x, x * 0 + 1


VERDICT = Proved("L2", "range")
