"""Refused: each round has a row more than the one before, so its number times its rows are not those of all before."""

import tilelang.language as T

from verdicts import MANUAL, Unsupported, contract

ROLE = 128  # threads
n, m = T.dynamic("n"), T.dynamic("m")


@T.prim_func
def kernel(Q: T.Tensor((n, ROLE), "float32"), A: T.Tensor((n, m, ROLE), "float32"), B: T.Tensor((n, ROLE), "float32")):
    with T.Kernel(1, threads=2 * ROLE):
        q = T.alloc_shared((ROLE,), "float32", scope="shared")
        row = T.alloc_shared((ROLE,), "float32", scope="shared")
        total = T.alloc_local((1,), "float32")
        rows = T.alloc_local((1,), "int32")
        rows[0] = 1
        q_ready = T.alloc_barrier(ROLE)
        q_free = T.alloc_barrier(ROLE)
        ready = T.alloc_barrier(ROLE)
        free = T.alloc_barrier(ROLE)
        thread = T.get_thread_binding()
        if thread < ROLE:
            for i in T.serial(n):
                T.barrier_wait(q_free, 1 - i * rows[0] % 2)
                q[thread] = Q[i, thread]
                T.barrier_arrive(q_ready)
                for t in T.serial(rows[0]):
                    T.barrier_wait(free, (i * rows[0] + t + 1) % 2)
                    row[thread] = A[i, t % m, thread]
                    T.barrier_arrive(ready)
                rows[0] += 1
        else:
            for i in T.serial(n):
                T.barrier_wait(q_ready, i % 2)
                total[0] = 0.0
                for t in T.serial(rows[0]):
                    T.barrier_wait(ready, (i * rows[0] + t) % 2)
                    total[0] += row[(thread + 1) % ROLE] * q[(thread + 1) % ROLE]
                    T.barrier_arrive(q_free)
                    T.barrier_arrive(free)
                rows[0] += 1
                B[i, thread - ROLE] = total[0]


CONTRACT = contract(kernel, "B")
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Unsupported("L1", "rounds that may differ in length")
