"""Open: a loop that sets a row of indices may be left before all of them are set."""

import tilelang.language as T

from verdicts import Unknown, contract

n = T.dynamic("n")


@T.prim_func
def kernel(flag: T.Tensor((n,), "int32"), x: T.Tensor((n, 4), "float32"), out: T.Tensor((n, 4), "float32")):
    with T.Kernel(n, threads=1) as block:
        at = T.alloc_local((4,), "int32")
        for k in T.serial(4):
            if flag[block] == k:
                T.loop_break()
            at[k] = k
        for k in T.serial(4):
            out[block, k] = x[block, at[k]]


CONTRACT = contract(kernel, "out")
VERDICT = Unknown("L0", bounds="private memory that a loop changes")
