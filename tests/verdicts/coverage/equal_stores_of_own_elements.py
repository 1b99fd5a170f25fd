"""Wrong: each thread stores what it keeps to one place, and keeps an element of its own."""

import tilelang.language as T

from verdicts import Refuted, contract


@T.prim_func
def kernel(x: T.Tensor((32,), "float32"), out: T.Tensor((1,), "float32")):
    with T.Kernel(1, threads=32):
        tx = T.get_thread_binding()
        kept = T.alloc_local((1,), "float32")
        kept[0] = x[tx]
        out[0] = kept[0]


CONTRACT = contract(kernel, "out")
VERDICT = Refuted(
    "L1",
    coverage="writes no place of its tile of out twice",
    uniqueness="no two executions write the same element of out",
)
