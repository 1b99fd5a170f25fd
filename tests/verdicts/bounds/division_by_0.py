"""Wrong: the divisor is a size, which may be 0."""

import tilelang.language as T

from verdicts import Refuted, contract

n, d = T.dynamic("n"), T.dynamic("d")


@T.prim_func
def kernel(x: T.Tensor((n,), "float32"), y: T.Tensor((d,), "float32"), out: T.Tensor((n,), "float32")):
    with T.Kernel(T.ceildiv(n, 128), threads=128) as block:
        i = block * 128 + T.get_thread_binding()
        if i < n:
            out[i] = x[i // d]


CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L0", division="does not divide by zero", bounds="read of x", overflow="does not overflow int64")
