"""Wrong: 128 threads step 127 columns at a time."""

import tilelang.language as T

from verdicts import Refuted, contract

M, N = T.dynamic("M"), T.dynamic("N")


@T.prim_func
def kernel(A: T.Tensor((M, N), "float32"), B: T.Tensor((M, N), "float32"), S: T.Tensor((M,), "float32")):
    with T.Kernel(M, threads=128) as row:
        tx = T.get_thread_binding()
        for k in T.serial(T.ceildiv(N, 128)):
            if k * 127 + tx < N:
                B[row, k * 127 + tx] = A[row, k * 127 + tx]
        if tx == 0:
            S[row] = A[row, 0]


CONTRACT = contract(kernel, "B", "S")
VERDICT = Refuted(
    "L1", coverage="every element of B is written", uniqueness="no two executions write the same element of B"
)
