"""Refused: a role without a loop in its rounds meets others in them."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import MANUAL, Unsupported, contract

ROLE = 128  # threads
n, m = T.dynamic("n"), T.dynamic("m")


@T.prim_func
def kernel(A: T.Tensor((n, m, ROLE), "float32"), B: T.Tensor((n, ROLE), "float32")):
    with T.Kernel(1, threads=3 * ROLE):
        row = T.alloc_shared((ROLE,), "float32", scope="shared")
        sums = T.alloc_shared((ROLE,), "float32", scope="shared")
        total = T.alloc_local((1,), "float32")
        ready = T.alloc_barrier(ROLE)
        free = T.alloc_barrier(ROLE)
        full = T.alloc_barrier(ROLE)
        empty = T.alloc_barrier(ROLE)
        thread = T.get_thread_binding()
        if thread < ROLE:
            for i in T.serial(n):
                for t in T.serial(m):
                    T.barrier_wait(free, (i * m + t + 1) % 2)
                    row[thread] = A[i, t, thread]
                    T.barrier_arrive(ready)
        elif thread < 2 * ROLE:
            for i in T.serial(n):
                total[0] = 0.0
                for t in T.serial(m):
                    T.barrier_wait(ready, (i * m + t) % 2)
                    total[0] += row[(thread + 1) % ROLE]
                    T.barrier_arrive(free)
                T.barrier_wait(empty, (i + 1) % 2)
                sums[thread - ROLE] = total[0]
                T.barrier_arrive(full)
        else:
            for i in T.serial(n):
                T.barrier_wait(full, i % 2)
                B[i, thread - 2 * ROLE] = sums[(thread + 1) % ROLE]
                T.barrier_arrive(empty)


CONTRACT = contract(kernel, "B", sizes={"m": Size(1, 4096)})
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Unsupported("L1", "threads 256 to 383 meet others in a loop that is not one of rounds")
