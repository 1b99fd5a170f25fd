"""Refused: a loop over 64 threads is bound to a block that has 128."""

import tilelang.language as T

from verdicts import Unsupported, contract

M = T.dynamic("M")


@T.prim_func
def kernel(x: T.Tensor((M, 128), "float32"), out: T.Tensor((M, 128), "float32")):
    with T.Kernel(M, threads=128) as block:
        for tx in T.thread_binding(0, 64, thread="threadIdx.x"):
            out[block, tx] = x[block, tx]


CONTRACT = contract(kernel, "out")
VERDICT = Unsupported("L1", "threadIdx.x is launched with two extents")
