"""Wrong: what is waived is of another statement."""

import tilelang.language as T

from lemmata.proofs.engine.execution.ranges import Waiver
from verdicts import Refuted, contract


@T.prim_func
def kernel(x: T.Tensor((8,), "float32"), out: T.Tensor((8,), "float32")):
    with T.Kernel(1, threads=8):
        for i in T.Parallel(8):
            out[i] = T.exp(x[i])


CONTRACT = contract(kernel, "out")
OPTIONS = {"waivers": [Waiver("T.exp(x[j])", "exp", "x is a logarithm of a probability")]}


def reference(x):
    return x.exp()


VERDICT = Refuted("range", range="the argument of exp is at most 0")
