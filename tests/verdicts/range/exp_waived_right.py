"""Right: that exp does not overflow is waived, by name and with a reason; the verdict lists it."""

import tilelang.language as T

from lemmata.proofs.engine.execution.ranges import Waiver
from verdicts import Proved, contract


@T.prim_func
def kernel(x: T.Tensor((8,), "float32"), out: T.Tensor((8,), "float32")):
    with T.Kernel(1, threads=8):
        for i in T.Parallel(8):
            out[i] = T.exp(x[i])


CONTRACT = contract(kernel, "out")
OPTIONS = {"waivers": [Waiver("T.exp(x[i])", "exp", "x is a logarithm of a probability")]}


def reference(x):
    return x.exp()


VERDICT = Proved("range")
