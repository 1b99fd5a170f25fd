"""Wrong: 60 KiB of static shared memory, of which a kernel may have 48."""

import tilelang.language as T

from verdicts import Refuted, contract


@T.prim_func
def kernel(out: T.Tensor((1,), "float32")):
    with T.Kernel(1, threads=128):
        tile = T.alloc_shared((15_360,), "float32", scope="shared")
        tx = T.get_thread_binding()
        tile[tx] = 1.0
        if tx == 0:
            out[0] = tile[tx]


CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L0", launch="61440 bytes")
