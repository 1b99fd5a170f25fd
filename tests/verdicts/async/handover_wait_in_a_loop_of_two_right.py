"""Right: the wait stands in a loop that runs twice."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import ASYNC, MANUAL, Proved, contract

tiles = T.dynamic("tiles")


@T.prim_func
def kernel(A: T.Tensor((64, 8), "float32"), C: T.Tensor((64, 8), "float32"), B: T.Tensor((tiles,), "float32")):
    with T.Kernel(1, threads=64):
        S = T.alloc_shared((64, 8), "float32")
        for i, d in T.Parallel(64, 8, annotations=ASYNC):
            S[i, d] = A[i, d]
        T.ptx_commit_group()
        for _ in T.serial(2):
            T.ptx_wait_group(0)
        T.sync_threads()
        for i, d in T.Parallel(64, 8):
            C[i, d] = S[63 - i, d]


CONTRACT = contract(kernel, "C", sizes={"tiles": Size(0, 2**20)})
OPTIONS = {"pass_configs": {**MANUAL, "tl.disable_warp_specialized": True}}
VERDICT = Proved("L1")
