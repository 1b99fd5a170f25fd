"""Right: two tiles of rows of three-dimensional tensors are stored by TMA."""

import tilelang.language as T

from verdicts import Proved, contract

M = T.dynamic("M")


@T.prim_func
def kernel(
    x: T.Tensor((M, 4, 128), "bfloat16"), y: T.Tensor((M, 4, 128), "bfloat16"), z: T.Tensor((M, 4, 128), "float32")
):
    with T.Kernel(T.ceildiv(M, 32), 4, threads=128) as (bx, by):
        s = T.alloc_shared((32, 128), "bfloat16")
        t = T.alloc_shared((32, 128), "float32")
        T.copy(x[bx * 32 : bx * 32 + 32, by, :], s, disable_tma=True)
        for i, j in T.Parallel(32, 128):
            t[i, j] = s[i, j] * 2.0
        T.copy(s, y[bx * 32 : bx * 32 + 32, by, :])
        T.copy(t, z[bx * 32 : bx * 32 + 32, by, :])


CONTRACT = contract(kernel, "y", "z")
VERDICT = Proved("L0", "L1", unmodelled="proxy fence after the barrier")
