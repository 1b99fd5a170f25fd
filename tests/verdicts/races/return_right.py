"""Right: the barrier comes before threads beyond the end return."""

import tilelang.language as T

from verdicts import MANUAL, Proved, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n,), "float32"), out: T.Tensor((n,), "float32")):
    with T.Kernel(T.ceildiv(n, 32), threads=32) as block:
        tx = T.get_thread_binding()
        s = T.alloc_shared((32,), "float32")
        s[tx] = T.if_then_else(block * 32 + tx < n, x[block * 32 + tx], T.float32(0))
        T.sync_threads()
        if block * 32 + tx >= n:
            T.thread_return()
        out[block * 32 + tx] = s[0]


OPTIONS = {"pass_configs": MANUAL}
CONTRACT = contract(kernel, "out")
VERDICT = Proved("L1")
