"""Wrong: each thread stores its own number to one place, as a float."""

import tilelang.language as T

from verdicts import Refuted, contract


@T.prim_func
def kernel(x: T.Tensor((32,), "float32"), out: T.Tensor((1,), "float32")):
    with T.Kernel(1, threads=32):
        out[0] = x[0] + T.cast(T.get_thread_binding(), "float32")


CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L1", uniqueness="no two executions write the same element of out", when="tx != tx'")
