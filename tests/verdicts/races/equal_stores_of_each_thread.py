"""Wrong: each thread stores its own number to one place of shared memory."""

import tilelang.language as T

from verdicts import MANUAL, Refuted, contract


@T.prim_func
def kernel(x: T.Tensor((1,), "float32"), out: T.Tensor((32,), "float32")):
    with T.Kernel(1, threads=32):
        tx = T.get_thread_binding()
        s = T.alloc_shared((1,), "float32")
        s[0] = x[0] + T.cast(tx, "float32")
        T.sync_threads()
        out[tx] = s[0]


CONTRACT = contract(kernel, "out")
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Refuted("L1", race="write of s", when="tx != tx'")
