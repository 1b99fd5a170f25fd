"""Right: whether a tile is fetched, and how many may be in flight, is decided by the number of the iteration."""

import tilelang.language as T

from verdicts import ASYNC, MANUAL, Proved, contract


@T.macro
def fetch(A, ring, t):
    for i in T.Parallel(128, annotations=ASYNC):
        ring[t % 2, i] = A[t, i]
    T.ptx_commit_group()


@T.prim_func
def kernel(A: T.Tensor((4, 128), "float32"), C: T.Tensor((4, 128), "float32")):
    with T.Kernel(1, threads=128):
        ring = T.alloc_shared((2, 128), "float32")
        fetch(A, ring, 0)
        fetch(A, ring, 1)
        for t in T.serial(4):
            if t < 3:
                T.ptx_wait_group(1)
            else:
                T.ptx_wait_group(0)
            T.sync_threads()
            for i in T.Parallel(128):
                C[t, i] = ring[t % 2, 127 - i]
            T.sync_threads()
            if t + 2 < 4:
                fetch(A, ring, t + 2)


CONTRACT = contract(kernel, "C")
OPTIONS = {"pass_configs": {**MANUAL, "tl.disable_warp_specialized": True}}
VERDICT = Proved("L1")
