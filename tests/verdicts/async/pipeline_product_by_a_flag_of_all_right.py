"""Right: all threads look at one flag, and issue a product together or not at all."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import ASYNC, MANUAL, Proved, contract

tiles = T.dynamic("tiles")


@T.macro
def load(B, ks, t, stage):
    for j, d in T.Parallel(32, 64, annotations=ASYNC):
        ks[stage, j, d] = B[t, j, d]


@T.prim_func
def kernel(
    A: T.Tensor((64, 64), "bfloat16"),
    B: T.Tensor((tiles, 32, 64), "bfloat16"),
    flags: T.Tensor((128,), "int32"),
    C: T.Tensor((64, 32), "float32"),
):
    with T.Kernel(1, threads=128):
        qs = T.alloc_shared((64, 64), "bfloat16")
        ks = T.alloc_shared((2, 32, 64), "bfloat16")
        z = T.alloc_fragment((64, 32), "float32")
        for i, d in T.Parallel(64, 64, annotations=ASYNC):
            qs[i, d] = A[i, d]
        if tiles > 0:
            load(B, ks, 0, 0)
        T.ptx_commit_group()
        T.fill(z, 0)
        for t in T.serial(tiles):
            T.ptx_wait_group(0)
            T.fence_proxy_async()
            T.sync_threads()
            if t + 1 < tiles:
                load(B, ks, t + 1, (t + 1) % 2)
            T.ptx_commit_group()
            if flags[0] > 0:
                T.wgmma_gemm(qs, ks[t % 2, :, :], z, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
            T.wait_wgmma(0)
        T.copy(z, C)


CONTRACT = contract(kernel, "C", sizes={"tiles": Size(0, 2**20)})
OPTIONS = {"pass_configs": {**MANUAL, "tl.disable_warp_specialized": True}}
VERDICT = Proved("L1")
