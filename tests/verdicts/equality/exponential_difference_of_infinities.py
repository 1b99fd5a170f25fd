"""Wrong: a difference of infinities is no number."""

import tilelang.language as T

from verdicts import Refuted, contract


@T.prim_func
def kernel(x: T.Tensor((4,), "float32"), out: T.Tensor((4,), "float32")):
    with T.Kernel(1, threads=4):
        for i in T.Parallel(4):
            out[i] = T.exp(x[i] + T.infinity("float32") - T.infinity("float32"))


CONTRACT = contract(kernel, "out")


def reference(x):
    return x.exp()


VERDICT = Refuted("L2", not_a_number="inf meets -inf")
