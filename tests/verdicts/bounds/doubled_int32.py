"""Wrong: twice the index wraps beyond 2^30 elements."""

import tilelang.language as T

from verdicts import Refuted, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n,), "float32"), out: T.Tensor((n,), "float32")):
    with T.Kernel(T.ceildiv(n, 128), threads=128) as block:
        at = T.alloc_var("int32")
        i = block * 128 + T.get_thread_binding()
        if i < n:
            at = T.cast(i, "int32") * 2 + 1
            out[i] = x[at // 2]


CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L0", when="n > 2**30", overflow="bx * 256 + tx * 2 + 1 does not overflow int32")
