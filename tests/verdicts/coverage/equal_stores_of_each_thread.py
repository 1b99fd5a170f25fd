"""Wrong: each thread stores its own number to one place."""

import tilelang.language as T

from verdicts import Refuted, contract


@T.prim_func
def kernel(x: T.Tensor((32,), "int32"), out: T.Tensor((1,), "int32")):
    with T.Kernel(1, threads=32):
        out[0] = T.get_thread_binding()


CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L1", uniqueness="no two executions write the same element of out", when="tx != tx'")
