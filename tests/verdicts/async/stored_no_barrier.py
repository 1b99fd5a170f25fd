"""Wrong: the product reads what other threads may not have stored yet."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import MANUAL, Refuted, contract

tiles = T.dynamic("tiles")


@T.prim_func
def kernel(
    A: T.Tensor((tiles, 64, 64), "bfloat16"), B: T.Tensor((tiles, 32, 64), "bfloat16"), C: T.Tensor((64, 32), "float32")
):
    with T.Kernel(1, threads=128):
        qs = T.alloc_shared((64, 64), "bfloat16")
        ks = T.alloc_shared((32, 64), "bfloat16")
        z = T.alloc_fragment((64, 32), "float32")
        T.fill(z, 0)
        for t in T.serial(tiles):
            for i, d in T.Parallel(64, 64):
                qs[i, d] = A[t, i, d] * 2
            for j, d in T.Parallel(32, 64):
                ks[j, d] = B[t, j, d] * 2
            T.fence_proxy_async()
            T.wgmma_gemm(qs, ks, z, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
            T.wait_wgmma(0)
            T.sync_threads()
        T.copy(z, C)


CONTRACT = contract(kernel, "C", sizes={"tiles": Size(0, 2**20)})
OPTIONS = {"pass_configs": {**MANUAL, "tl.disable_warp_specialized": True}}
VERDICT = Refuted("L1", async_="product's read of qs ... meets this write of qs, with no barrier between")
