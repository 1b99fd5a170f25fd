"""Wrong: the named barrier is one of both roles; one of part of a block orders the threads of a single role."""

import tilelang.language as T

from verdicts import MANUAL, Refuted, contract

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
            T.sync_threads(3, 2 * ROLE)
        else:
            T.sync_threads(3, 2 * ROLE)
            B[thread - ROLE] = row[thread - ROLE]


CONTRACT = contract(kernel, "B")
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Refuted("L1", barrier="", race="row")
