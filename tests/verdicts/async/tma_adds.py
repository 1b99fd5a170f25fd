"""Refused: TMA adds a tile to what is there."""

import tilelang.language as T

from verdicts import Unsupported, contract

M = T.dynamic("M")


@T.prim_func
def kernel(x: T.Tensor((M, 128), "float32"), out: T.Tensor((M, 128), "float32")):
    with T.Kernel(T.ceildiv(M, 64), threads=128) as block:
        s = T.alloc_shared((64, 128), "float32")
        for i, j in T.Parallel(64, 128):
            if block * 64 + i < M:
                s[i, j] = x[block * 64 + i, j] * 2.0
        T.atomic_add(out[block * 64, 0], s, use_tma=True)


CONTRACT = contract(kernel, "out")
VERDICT = Unsupported("L1", "out is written by unmodelled intrinsics")
