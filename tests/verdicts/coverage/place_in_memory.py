"""Refused: the place that is written is read from shared memory, and may be anything."""

import tilelang.language as T

from verdicts import Unsupported, contract


@T.prim_func
def kernel(x: T.Tensor((32,), "float32"), out: T.Tensor((32,), "float32")):
    with T.Kernel(1, threads=32):
        tx = T.get_thread_binding()
        first = T.alloc_shared((1,), "int32")
        if tx == 0:
            first[0] = 0
        T.sync_threads()
        out[first[0] + tx] = x[tx]


CONTRACT = contract(kernel, "out")
VERDICT = Unsupported("L1", "not a multiple")
