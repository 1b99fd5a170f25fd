"""Wrong: in the second round the query is awaited by the other parity, which is that of the third."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import MANUAL, Refuted, contract

ROLE = 128  # threads
n, m = T.dynamic("n"), T.dynamic("m")


@T.prim_func
def kernel(Q: T.Tensor((n, ROLE), "float32"), A: T.Tensor((n, m, ROLE), "float32"), B: T.Tensor((n, ROLE), "float32")):
    with T.Kernel(1, threads=2 * ROLE):
        q = T.alloc_shared((ROLE,), "float32", scope="shared")
        row = T.alloc_shared((ROLE,), "float32", scope="shared")
        total = T.alloc_local((1,), "float32")
        q_ready = T.alloc_barrier(ROLE)
        q_free = T.alloc_barrier(ROLE)
        ready = T.alloc_barrier(ROLE)
        free = T.alloc_barrier(ROLE)
        thread = T.get_thread_binding()
        if thread < ROLE:
            for i in T.serial(n):
                T.barrier_wait(q_free, 1 - i * m % 2)
                q[thread] = Q[i, thread]
                T.barrier_arrive(q_ready)
                for t in T.serial(m):
                    T.barrier_wait(free, (i * m + t + 1) % 2)
                    row[thread] = A[i, t, thread]
                    T.barrier_arrive(ready)
        else:
            for i in T.serial(n):
                T.barrier_wait(q_ready, T.if_then_else(i == 1, 0, i % 2))
                total[0] = 0.0
                for t in T.serial(m):
                    T.barrier_wait(ready, (i * m + t) % 2)
                    total[0] += row[(thread + 1) % ROLE] * q[(thread + 1) % ROLE]
                    T.barrier_arrive(q_free)
                    T.barrier_arrive(free)
                B[i, thread - ROLE] = total[0]


CONTRACT = contract(kernel, "B", sizes={"m": Size(1, 4096)})
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Refuted("L1", phase="this waits at q_ready[0] for the phase of its round")
