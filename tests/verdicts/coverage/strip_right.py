"""Right: the threads of a block walk its row together, and one of them writes the row's first element."""

import tilelang.language as T

from verdicts import Proved, contract

M, N = T.dynamic("M"), T.dynamic("N")


@T.prim_func
def kernel(A: T.Tensor((M, N), "float32"), B: T.Tensor((M, N), "float32"), S: T.Tensor((M,), "float32")):
    with T.Kernel(M, threads=128) as row:
        tx = T.get_thread_binding()
        for k in T.serial(T.ceildiv(N, 128)):
            if k * 128 + tx < N:
                B[row, k * 128 + tx] = A[row, k * 128 + tx]
        if tx == 0:
            S[row] = A[row, 0]


CONTRACT = contract(kernel, "B", "S")
VERDICT = Proved("L1")
