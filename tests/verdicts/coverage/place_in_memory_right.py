"""Right: what is read from shared memory is a value, not a place."""

import tilelang.language as T

from verdicts import Proved, contract


@T.prim_func
def kernel(x: T.Tensor((32,), "float32"), out: T.Tensor((32,), "float32")):
    with T.Kernel(1, threads=32):
        tx = T.get_thread_binding()
        first = T.alloc_shared((1,), "int32")
        if tx == 0:
            first[0] = 0
        T.sync_threads()
        out[tx] = x[tx] + first[0]


CONTRACT = contract(kernel, "out")
VERDICT = Proved("L1")
