"""Right: each thread sets the counter that it increases and uses as an index."""

import tilelang.language as T

from verdicts import Proved, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n, 8), "float32"), out: T.Tensor((n, 32), "float32")):
    with T.Kernel(n, threads=32) as block:
        tx = T.get_thread_binding()
        c = T.alloc_local((1,), "uint32")
        c[0] = T.uint32(0)
        for _ in T.serial(4):
            c[0] = c[0] + T.uint32(1)
        out[block, tx] = x[block, T.Cast("int64", c[0])]


CONTRACT = contract(kernel, "out")
VERDICT = Proved("L0")
