"""Wrong: what is read before the wait may be what an earlier kernel has not written yet."""

import tilelang.language as T

from verdicts import Refuted, contract


@T.prim_func
def kernel(x: T.Tensor((4,), "float32"), out: T.Tensor((4,), "float32")):
    with T.Kernel(1, threads=4):
        y = T.alloc_fragment((4,), "float32")
        T.copy(x, y)
        T.pdl_sync()
        T.copy(x, y)
        T.copy(y, out)


CONTRACT = contract(kernel, "out")


VERDICT = Refuted("L1", launch="launched before")
