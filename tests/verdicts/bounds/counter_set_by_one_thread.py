"""Wrong: only thread 0 sets the counter that all threads increase and use as an index; what wraps is no overflow."""

import tilelang.language as T

from verdicts import Refuted, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n, 8), "float32"), out: T.Tensor((n, 32), "float32")):
    with T.Kernel(n, threads=32) as block:
        tx = T.get_thread_binding()
        c = T.alloc_local((1,), "uint32")
        if tx == 0:
            c[0] = T.uint32(0)
        for _ in T.serial(4):
            c[0] = c[0] + T.uint32(1)
        out[block, tx] = x[block, T.Cast("int64", c[0])]


CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L0", bounds="read of x")
