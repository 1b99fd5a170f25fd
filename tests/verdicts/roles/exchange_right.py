"""Right: in each round two roles add the same rows and hand each other their sums, whose place is free once both are taken."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import MANUAL, Proved, contract

ROLE = 128  # threads
n, m = T.dynamic("n"), T.dynamic("m")


@T.prim_func
def kernel(A: T.Tensor((n, m, ROLE), "float32"), B: T.Tensor((n, 2 * ROLE), "float32")):
    with T.Kernel(1, threads=3 * ROLE):
        row = T.alloc_shared((ROLE,), "float32", scope="shared")
        sums = T.alloc_shared((2 * ROLE,), "float32", scope="shared")
        total = T.alloc_local((1,), "float32")
        ready = T.alloc_barrier(ROLE)
        free = T.alloc_barrier(2 * ROLE)
        handed = T.alloc_barrier(2 * ROLE)
        taken = T.alloc_barrier(2 * ROLE)
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
                T.barrier_wait(taken, (i + 1) % 2)
                sums[thread - ROLE] = total[0]
                T.barrier_arrive(handed)
                T.barrier_wait(handed, i % 2)
                B[i, thread - ROLE] = sums[2 * ROLE - 1 - (thread - ROLE)]
                T.barrier_arrive(taken)
        else:
            for i in T.serial(n):
                total[0] = 0.0
                for t in T.serial(m):
                    T.barrier_wait(ready, (i * m + t) % 2)
                    total[0] += row[(thread + 2) % ROLE]
                    T.barrier_arrive(free)
                T.barrier_wait(taken, (i + 1) % 2)
                sums[thread - ROLE] = total[0]
                T.barrier_arrive(handed)
                T.barrier_wait(handed, i % 2)
                B[i, thread - ROLE] = sums[2 * ROLE - 1 - (thread - ROLE)]
                T.barrier_arrive(taken)


CONTRACT = contract(kernel, "B", sizes={"m": Size(1, 4096)})
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Proved("L1")
