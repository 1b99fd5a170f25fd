"""Right: copies run ahead through four stages, and the wait leaves the newer ones in flight."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import ASYNC, MANUAL, Proved, contract

tiles = T.dynamic("tiles")


@T.prim_func
def kernel(A: T.Tensor((tiles, 128), "float32"), C: T.Tensor((tiles, 128), "float32")):
    with T.Kernel(1, threads=128):
        ring = T.alloc_shared((4, 128), "float32")
        for stage in T.serial(3):
            if stage < tiles:
                for i in T.Parallel(128, annotations=ASYNC):
                    ring[stage, i] = A[stage, i]
            T.ptx_commit_group()
        for t in T.serial(tiles):
            T.ptx_wait_group(2)
            T.sync_threads()
            if t + 3 < tiles:
                for i in T.Parallel(128, annotations=ASYNC):
                    ring[(t + 3) % 4, i] = A[t + 3, i]
            T.ptx_commit_group()
            for i in T.Parallel(128):
                C[t, i] = ring[t % 4, 127 - i]


CONTRACT = contract(kernel, "C", sizes={"tiles": Size(0, 2**20)})
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Proved("L1")
