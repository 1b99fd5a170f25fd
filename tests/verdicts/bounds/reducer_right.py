"""Right: a warp counts the positive numbers of a row, of which each thread sees eight."""

import tilelang.language as T

from verdicts import Proved, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n, 256), "float32"), amounts: T.Tensor((n,), "int32"), out: T.Tensor((n,), "int32")):
    with T.Kernel(n, threads=32) as block:
        count = T.alloc_reducer((1,), "int32", op="sum")
        total = T.alloc_fragment((1,), "int32")
        T.reducer_init(count)
        for i in T.Parallel(256):
            if x[block, i] > 0:
                T.reducer_update(count[0], 1)
        T.finalize_reducer(count, total)
        if T.get_thread_binding() == 0:
            out[block] = total[0]


CONTRACT = contract(kernel, "out")
VERDICT = Proved("L0")
