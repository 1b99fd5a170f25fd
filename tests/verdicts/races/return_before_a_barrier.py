"""Wrong: threads beyond the end return, and the others wait for them at a barrier."""

import tilelang.language as T

from verdicts import MANUAL, Refuted, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n,), "float32"), out: T.Tensor((n,), "float32")):
    with T.Kernel(T.ceildiv(n, 32), threads=32) as block:
        tx = T.get_thread_binding()
        s = T.alloc_shared((32,), "float32")
        if block * 32 + tx >= n:
            T.thread_return()
        s[tx] = x[block * 32 + tx]
        T.sync_threads()
        out[block * 32 + tx] = s[0]


OPTIONS = {"pass_configs": MANUAL}
CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L1", barrier="all threads of a block reach this barrier")
