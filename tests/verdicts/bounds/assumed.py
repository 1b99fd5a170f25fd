"""Wrong: the kernel assumes of a size what the contract does not give."""

import tilelang.language as T

from verdicts import Refuted, contract

n, d = T.dynamic("n"), T.dynamic("d")


@T.prim_func
def kernel(x: T.Tensor((n,), "float32"), y: T.Tensor((d,), "float32"), out: T.Tensor((n,), "float32")):
    with T.Kernel(T.ceildiv(n, 128), threads=128) as block:
        i = block * 128 + T.get_thread_binding()
        if i < n:
            T.assume(d > 3)
            out[i] = x[i]


CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L0", assume="3 < d, which the kernel assumes")
