"""Wrong: the parity of the first wait is one of a phase that nobody completes, so that both roles wait forever."""

import tilelang.language as T

from verdicts import MANUAL, Refuted, contract

ROLE = 128  # threads
n = T.dynamic("n")


@T.prim_func
def kernel(A: T.Tensor((n, ROLE), "float32"), B: T.Tensor((ROLE,), "float32")):
    with T.Kernel(1, threads=2 * ROLE):
        row = T.alloc_shared((ROLE,), "float32", scope="shared")
        total = T.alloc_local((1,), "float32")
        ready = T.alloc_barrier(ROLE)
        free = T.alloc_barrier(ROLE)
        thread = T.get_thread_binding()
        if thread < ROLE:
            for t in T.serial(n):
                T.barrier_wait(free, t % 2)
                row[thread] = A[t, thread]
                T.barrier_arrive(ready)
        else:
            total[0] = 0.0
            for t in T.serial(n):
                T.barrier_wait(ready, t % 2)
                total[0] += row[(thread + 1) % ROLE]
                T.barrier_arrive(free)
            B[thread - ROLE] = total[0]


CONTRACT = contract(kernel, "B")
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Refuted("L1", deadlock=" ")
