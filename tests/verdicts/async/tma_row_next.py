"""Wrong: each block stores the next block's row by TMA."""

import tilelang.language as T

from verdicts import Refuted, contract

M = T.dynamic("M")


@T.prim_func
def kernel(x: T.Tensor((M, 128), "float32"), out: T.Tensor((M, 128), "float32")):
    with T.Kernel(M, threads=128) as block:
        s = T.alloc_shared((128,), "float32")
        tx = T.get_thread_binding()
        s[tx] = x[block, tx]
        T.copy(s, out[block + 1, :])


CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L1", coverage="every element of out is written")
