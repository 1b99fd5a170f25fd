"""Right: 48 000 bytes of static shared memory."""

import tilelang.language as T

from verdicts import Proved, contract


@T.prim_func
def kernel(out: T.Tensor((1,), "float32")):
    with T.Kernel(1, threads=128):
        tile = T.alloc_shared((12_000,), "float32", scope="shared")
        tx = T.get_thread_binding()
        tile[tx] = 1.0
        if tx == 0:
            out[0] = tile[tx]


CONTRACT = contract(kernel, "out")
VERDICT = Proved("L0")
