"""Wrong: block 0 stores what the others add to atomically, unordered."""

import tilelang.language as T

from verdicts import Refuted, contract


@T.prim_func
def kernel(x: T.Tensor((64,), "int32"), out: T.Tensor((64,), "int32")):
    with T.Kernel(4, threads=64) as block:
        tx = T.get_thread_binding()
        if block == 0:
            out[tx] = x[tx]
        else:
            T.atomic_add(out[tx], x[tx])


CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L1", race="out")
