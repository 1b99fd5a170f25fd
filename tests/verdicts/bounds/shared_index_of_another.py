"""Wrong: the guard looks at another element than the index."""

import tilelang.language as T

from verdicts import MANUAL, Refuted, contract

n = T.dynamic("n")


@T.prim_func
def kernel(at: T.Tensor((32,), "int32"), x: T.Tensor((n,), "float32"), out: T.Tensor((32,), "float32")):
    with T.Kernel(1, threads=32):
        tx = T.get_thread_binding()
        place = T.alloc_shared((32,), "int32")
        place[tx] = at[tx]
        T.sync_threads()
        out[tx] = T.if_then_else(place[tx] >= 0 and place[tx] < n, x[place[31 - tx]], 0.0)


CONTRACT = contract(kernel, "out")
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Refuted("L0", bounds="read of x")
