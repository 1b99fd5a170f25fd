"""Wrong: the compiler's guards keep the copy in bounds, but 32 bits do not fit 8."""

import tilelang.language as T

from verdicts import Refuted, contract

count = T.dynamic("count")


@T.prim_func
def kernel(x: T.Tensor((count,), "int32"), out: T.Tensor((count,), "int8")):
    with T.Kernel(T.ceildiv(count, 128), threads=128) as block:
        i = block * 128 + T.get_thread_binding()
        out[i] = T.cast(x[i], "int8")


CONTRACT = contract(kernel, "out")
OPTIONS = {"pass_configs": {}}
VERDICT = Refuted("L0", **{"own bounds": ("read of x", "write of out")}, cast="int8")
