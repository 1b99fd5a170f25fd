"""Wrong: a tile is filled again while TMA may read it."""

import tilelang.language as T

from verdicts import MANUAL, Refuted, contract

M = T.dynamic("M")


@T.prim_func
def kernel(x: T.Tensor((M, 128), "float32"), out: T.Tensor((M, 128), "float32")):
    with T.Kernel(T.ceildiv(M, 256), threads=128) as block:
        s = T.alloc_shared((64, 128), "float32")
        for k in T.serial(4):
            for i, j in T.Parallel(64, 128):
                if block * 256 + k * 64 + i < M:
                    s[i, j] = x[block * 256 + k * 64 + i, j] * 2.0
            T.sync_threads()
            T.tma_copy(s, out[block * 256 + k * 64, 0])
            T.sync_threads()
        T.tma_store_wait()


CONTRACT = contract(kernel, "out")
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Refuted("L1", async_="write of s ... meets this TMA's read of s, not awaited")
