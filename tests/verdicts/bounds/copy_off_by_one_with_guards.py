"""Wrong: the compiler's own guards keep the access from memory, but do not make it right."""

import tilelang.language as T

from verdicts import Refuted, contract

count = T.dynamic("count")


@T.prim_func
def kernel(x: T.Tensor((count,), "float32"), out: T.Tensor((count,), "float32")):
    with T.Kernel(T.ceildiv(count, 128), threads=128) as block:
        i = block * 128 + T.get_thread_binding()
        if i < count + 1:
            out[i] = x[i]


CONTRACT = contract(kernel, "out")
OPTIONS = {"pass_configs": {}}
VERDICT = Refuted("L0", bounds="read of x")
