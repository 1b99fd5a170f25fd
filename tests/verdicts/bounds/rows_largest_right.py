"""Right: with so many rows, count + 31 is the largest 32-bit number."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import Proved, contract

count = T.dynamic("count")


@T.prim_func
def kernel(x: T.Tensor((count, 4, 4), "float32"), out: T.Tensor((count, 4, 4), "float32")):
    with T.Kernel(T.ceildiv(count, 32), threads=32) as block:
        matrix = block * 32 + T.get_thread_binding()
        p = T.alloc_local((4, 4), "float32")
        s = T.alloc_shared((32,), "float32")
        s[matrix % 32] = 0.0
        if matrix < count:
            for i in T.unroll(4):
                for j in T.vectorized(4):
                    p[i, j] = x[matrix, i, j]
            for i in T.unroll(4):
                for j in T.unroll(4):
                    p[i, j] *= s[matrix % 32]
            for i in T.unroll(4):
                for j in T.unroll(4):
                    out[matrix, i, j] = p[i, j]


CONTRACT = contract(kernel, "out", sizes={"count": Size(high=2**31 - 1 - 31)})
VERDICT = Proved("L0")
