"""Right: each thread reads the lane of shared memory that it alone has written, so no barrier is needed."""

import tilelang.language as T

from verdicts import MANUAL, Proved, contract


@T.prim_func
def kernel(A: T.Tensor((32, 4), "float32"), B: T.Tensor((32,), "float32")):
    with T.Kernel(1, threads=32):
        tx = T.get_thread_binding()
        history = T.alloc_shared((3, 4, 32), "float32")
        for step in T.serial(3):
            for i in T.unroll(4):
                history[step, i, tx] = A[tx, i]
        B[tx] = history[2, 3, tx]


CONTRACT = contract(kernel, "B")
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Proved("L1")
