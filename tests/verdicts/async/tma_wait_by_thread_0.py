"""Wrong: thread 0 waits, whichever thread of its warp has issued the store."""

import tilelang.language as T

from verdicts import Refuted, contract

M = T.dynamic("M")


@T.prim_func
def kernel(x: T.Tensor((M, 128), "float32"), out: T.Tensor((M, 128), "float32")):
    with T.Kernel(T.ceildiv(M, 64), threads=128) as block:
        s = T.alloc_shared((64, 128), "float32")
        for i, j in T.Parallel(64, 128):
            if block * 64 + i < M:
                s[i, j] = x[block * 64 + i, j] * 2.0
        T.tma_copy(s, out[block * 64, 0])
        if T.get_thread_binding() == 0:
            T.tma_store_wait()


CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L1", async_="TMA's read of s is over before the block ends")
