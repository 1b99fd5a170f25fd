"""Wrong: the wait would be made in the ninth iteration of eight."""

import tilelang.language as T

from verdicts import ASYNC, MANUAL, Refuted, contract


@T.prim_func
def kernel(A: T.Tensor((64, 8), "float32"), C: T.Tensor((64, 8), "float32")):
    with T.Kernel(1, threads=64):
        S = T.alloc_shared((64, 8), "float32")
        for i, d in T.Parallel(64, 8, annotations=ASYNC):
            S[i, d] = A[i, d]
        T.ptx_commit_group()
        for t in T.serial(8):
            if t == 8:
                T.ptx_wait_group(0)
        T.sync_threads()
        for i, d in T.Parallel(64, 8):
            C[i, d] = S[63 - i, d]


CONTRACT = contract(kernel, "C")
OPTIONS = {"pass_configs": {**MANUAL, "tl.disable_warp_specialized": True}}
VERDICT = Refuted("L1", async_="not awaited")
