"""Wrong: what is written before the wait an earlier kernel may still read."""

import tilelang.language as T

from verdicts import Refuted, contract


@T.prim_func
def kernel(x: T.Tensor((4,), "float32"), out: T.Tensor((4,), "float32")):
    with T.Kernel(1, threads=4):
        T.fill(out, 0)
        T.pdl_sync()


CONTRACT = contract(kernel, "out")


VERDICT = Refuted("L1", launch="launched before")
