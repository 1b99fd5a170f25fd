"""Wrong: with 8 rows or fewer nobody waits, but all are launched early."""

import tilelang.language as T

from verdicts import Refuted, contract

S = T.dynamic("S")


@T.prim_func
def kernel(x: T.Tensor((S, 4), "float32"), out: T.Tensor((S, 4), "float32")):
    with T.Kernel(S, threads=4) as s:
        y = T.alloc_fragment((4,), "float32")
        if S > 8:
            T.pdl_sync()
        T.copy(x[s, :], y)
        T.copy(y, out[s, :])


CONTRACT = contract(kernel, "out")


VERDICT = Refuted("L1", launch="launched before")
