"""Wrong: the input is set to 0 after it is read."""

import tilelang.language as T

from verdicts import Refuted, contract


@T.prim_func
def kernel(x: T.Tensor((32,), "float32"), out: T.Tensor((32,), "float32")):
    with T.Kernel(1, threads=32):
        tx = T.get_thread_binding()
        out[tx] = x[tx]
        x[tx] = 0.0


CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L1", coverage="x, which is no output, is not written")
