"""Right: the index is off by one, but the compiler's guards keep the access from memory, and the verdict says so."""

import tilelang.language as T

from verdicts import Proved, contract

count = T.dynamic("count")


@T.prim_func
def kernel(x: T.Tensor((count,), "float32"), out: T.Tensor((count,), "float32")):
    with T.Kernel(T.ceildiv(count, 128), threads=128) as block:
        i = block * 128 + T.get_thread_binding()
        if i < count + 1:
            out[i] = x[i]


CONTRACT = contract(kernel, "out")
OPTIONS = {"pass_configs": {}}
VERDICT = Proved(
    "L0", unmodelled="the compiler's guards", says="relies on the compiler's guards: refuted own bounds: read of"
)
