"""Right: a number that the threads of a block add up is kept within the table."""

import tilelang.language as T

from verdicts import Proved, contract

M = T.dynamic("M")


@T.prim_func
def kernel(x: T.Tensor((M, 32), "int32"), table: T.Tensor((33,), "float32"), out: T.Tensor((M,), "float32")):
    with T.Kernel(M, threads=32) as row:
        seen = T.alloc_fragment((32,), "int32")
        count = T.alloc_fragment((1,), "int32")
        for i in T.Parallel(32):
            seen[i] = T.if_then_else(x[row, i] > 0, 1, 0)
        T.reduce_sum(seen, count, dim=0)
        out[row] = table[T.max(T.min(count[0], 32), 0)]


CONTRACT = contract(kernel, "out")
VERDICT = Proved("L0", unmodelled="AllReduce")
