"""Wrong: one row too many is read."""

import tilelang.language as T

from verdicts import Refuted, contract

rows = T.dynamic("rows")


@T.prim_func
def kernel(x: T.Tensor((rows, 32), "float32"), out: T.Tensor((rows, 32), "float32")):
    with T.Kernel(T.ceildiv(rows, 32), threads=128) as block:
        p = T.alloc_fragment((32, 32), "float32")
        top = T.alloc_fragment((32,), "float32")
        total = T.alloc_fragment((32,), "float32")
        for i, j in T.Parallel(32, 32):
            p[i, j] = T.if_then_else(block * 32 + i < rows + 1, x[block * 32 + i, j], 0.0)
        T.reduce_max(p, top, dim=1)
        for i, j in T.Parallel(32, 32):
            p[i, j] = T.exp(p[i, j] - top[i])
        T.reduce_sum(p, total, dim=1)
        for i, j in T.Parallel(32, 32):
            if block * 32 + i < rows:
                out[block * 32 + i, j] = p[i, j] / total[i]


CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L0", bounds="read of x")
