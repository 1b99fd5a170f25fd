"""Wrong: thread 0 fills what the elected thread, which may be another, stores."""

import tilelang.language as T

from verdicts import MANUAL, Refuted, contract

M = T.dynamic("M")


@T.prim_func
def kernel(x: T.Tensor((M, 1), "float32"), out: T.Tensor((M, 1), "float32")):
    with T.Kernel(M, threads=128) as block:
        s = T.alloc_shared((1,), "float32")
        if T.get_thread_binding() == 0:
            s[0] = x[block, 0]
        if T.shuffle_elect(128):
            out[block, 0] = s[0]


CONTRACT = contract(kernel, "out")
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Refuted("L1", race="read of s")
