"""Right: the counts are cleared, increased atomically in whatever order, and read, with barriers between."""

import tilelang.language as T

from verdicts import MANUAL, Proved, contract


@T.prim_func
def kernel(x: T.Tensor((64,), "int32"), out: T.Tensor((64,), "int32")):
    with T.Kernel(1, threads=64):
        tx = T.get_thread_binding()
        counts = T.alloc_shared((64,), "int32", scope="shared")
        counts[tx] = 0
        T.sync_threads()
        T.atomic_add(counts[x[tx] % 64], 1)
        T.sync_threads()
        out[tx] = counts[tx]


CONTRACT = contract(kernel, "out")
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Proved("L1", unmodelled="tl.atomic_add_elem_op")
