"""Refused: shared memory is written before the warps part into roles."""

import tilelang.language as T

from verdicts import Unsupported, contract

ROLE = 128  # threads


@T.prim_func
def kernel(A: T.Tensor((ROLE,), "float32"), B: T.Tensor((ROLE,), "float32")):
    with T.Kernel(1, threads=2 * ROLE):
        row = T.alloc_shared((ROLE,), "float32", scope="shared")
        ready = T.alloc_barrier(ROLE)
        thread = T.get_thread_binding()
        row[thread % ROLE] = A[thread % ROLE]
        if thread < ROLE:
            T.barrier_arrive(ready)
        else:
            T.barrier_wait(ready, 0)
            B[thread - ROLE] = row[thread - ROLE]


CONTRACT = contract(kernel, "B")
VERDICT = Unsupported("L1", "roles")
