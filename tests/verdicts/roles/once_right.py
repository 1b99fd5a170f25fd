"""Right: one role stores a row and arrives; the other waits and reads it."""

import tilelang.language as T

from verdicts import MANUAL, Proved, contract

ROLE = 128  # threads


@T.prim_func
def kernel(A: T.Tensor((ROLE,), "float32"), B: T.Tensor((ROLE,), "float32")):
    with T.Kernel(1, threads=2 * ROLE):
        row = T.alloc_shared((ROLE,), "float32", scope="shared")
        ready = T.alloc_barrier(ROLE)
        thread = T.get_thread_binding()
        if thread < ROLE:
            row[thread] = A[thread]
            T.barrier_arrive(ready)
        else:
            T.barrier_wait(ready, 0)
            B[thread - ROLE] = row[thread - ROLE]


CONTRACT = contract(kernel, "B")
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Proved("L1")
