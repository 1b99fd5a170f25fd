"""Open: of 32 threads at most 32 count one each, but a sum over threads is not modelled."""

import tilelang.language as T

from verdicts import Unknown, contract

M = T.dynamic("M")


@T.prim_func
def kernel(x: T.Tensor((M, 32), "int32"), table: T.Tensor((33,), "float32"), out: T.Tensor((M,), "float32")):
    with T.Kernel(M, threads=32) as row:
        seen = T.alloc_fragment((32,), "int32")
        count = T.alloc_fragment((1,), "int32")
        for i in T.Parallel(32):
            seen[i] = T.if_then_else(x[row, i] > 0, 1, 0)
        T.reduce_sum(seen, count, dim=0)
        out[row] = table[count[0]]


CONTRACT = contract(kernel, "out")
VERDICT = Unknown("L0", bounds="read of table ... depends on tl::AllReduce ... which is not modelled")
