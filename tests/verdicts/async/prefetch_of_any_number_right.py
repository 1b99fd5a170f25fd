"""Right: whether a tile is fetched, and how many may be in flight, is decided by what is left of any number of tiles."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import ASYNC, MANUAL, Proved, contract

tiles = T.dynamic("tiles")


@T.macro
def fetch(A, ring, t):
    for i in T.Parallel(128, annotations=ASYNC):
        ring[t % 2, i] = A[t, i]
    T.ptx_commit_group()


@T.prim_func
def kernel(A: T.Tensor((tiles, 128), "float32"), C: T.Tensor((tiles, 128), "float32")):
    with T.Kernel(1, threads=128):
        ring = T.alloc_shared((2, 128), "float32")
        fetch(A, ring, 0)
        fetch(A, ring, 1)
        for t in T.serial(tiles):
            if t + 1 < tiles:
                T.ptx_wait_group(1)
            else:
                T.ptx_wait_group(0)
            T.sync_threads()
            for i in T.Parallel(128):
                C[t, i] = ring[t % 2, 127 - i]
            T.sync_threads()
            if t + 2 < tiles:
                fetch(A, ring, t + 2)


CONTRACT = contract(kernel, "C", sizes={"tiles": Size(2, 2**20)})
OPTIONS = {"pass_configs": {**MANUAL, "tl.disable_warp_specialized": True}}
VERDICT = Proved("L1")
