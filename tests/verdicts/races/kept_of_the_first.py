"""Wrong: each thread keeps a number that its own decides, and all store theirs to one place of shared memory."""

import tilelang.language as T

from verdicts import MANUAL, Refuted, contract

M = T.dynamic("M")


@T.prim_func
def kernel(x: T.Tensor((M, 32), "int32"), out: T.Tensor((M, 32), "int32")):
    with T.Kernel(M, threads=32) as block:
        tx = T.get_thread_binding()
        least, s = T.alloc_local((1,), "int32"), T.alloc_shared((1,), "int32")
        least[0] = x[block, 0]
        for k in T.serial(tx):
            if x[block, k] < least[0]:
                least[0] = x[block, k]
        s[0] = least[0]
        T.sync_threads()
        out[block, tx] = s[0]


CONTRACT = contract(kernel, "out")
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Refuted("L1", race="write of s")
