"""Wrong: of ten copies the last nine may be in flight, and the second is read."""

import tilelang.language as T

from verdicts import ASYNC, MANUAL, Refuted, contract


@T.prim_func
def kernel(A: T.Tensor((10, 128), "float32"), C: T.Tensor((128,), "float32")):
    with T.Kernel(1, threads=128):
        rows = T.alloc_shared((10, 128), "float32")
        for row in T.unroll(10):
            for i in T.Parallel(128, annotations=ASYNC):
                rows[row, i] = A[row, i]
            T.ptx_commit_group()
        T.ptx_wait_group(9)
        T.sync_threads()
        for i in T.Parallel(128):
            C[i] = rows[1, 127 - i]


CONTRACT = contract(kernel, "C")
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Refuted("L1", async_="not awaited")
