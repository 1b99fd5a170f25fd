"""Right: only the arm that is chosen is evaluated."""

import tilelang.language as T

from verdicts import Proved, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n,), "float32"), out: T.Tensor((n, 2), "float32")):
    with T.Kernel(n, threads=2) as block:
        tx = T.get_thread_binding()
        inside = block + tx < n
        out[block, tx] = T.if_then_else(inside, x[block + tx], 0.0)


CONTRACT = contract(kernel, "out")
VERDICT = Proved("L0")
