"""Right: all threads store the number that each of them keeps to one place of shared memory, and read it after a barrier."""

import tilelang.language as T

from verdicts import MANUAL, Proved, contract

M = T.dynamic("M")


@T.prim_func
def kernel(x: T.Tensor((M, 32), "int32"), out: T.Tensor((M, 32), "int32")):
    with T.Kernel(M, threads=32) as block:
        tx = T.get_thread_binding()
        least, s = T.alloc_local((1,), "int32"), T.alloc_shared((1,), "int32")
        least[0] = x[block, 0]
        for k in T.serial(32):
            if x[block, k] < least[0]:
                least[0] = x[block, k]
        s[0] = least[0]
        T.sync_threads()
        out[block, tx] = s[0]


CONTRACT = contract(kernel, "out")
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Proved("L1")
