"""Wrong: the index does not fit 8 bits."""

import tilelang.language as T

from verdicts import Refuted, contract

n, d = T.dynamic("n"), T.dynamic("d")


@T.prim_func
def kernel(x: T.Tensor((n,), "float32"), y: T.Tensor((d,), "float32"), out: T.Tensor((n,), "float32")):
    with T.Kernel(T.ceildiv(n, 128), threads=128) as block:
        i = block * 128 + T.get_thread_binding()
        if i < n:
            out[i] = x[i] + T.cast(T.cast(i, "int8"), "float32")


CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L0", cast="fits int8")
