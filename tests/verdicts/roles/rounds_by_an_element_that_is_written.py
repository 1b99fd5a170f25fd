"""Refused: each round leaves in the element how many rows the next one has."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import MANUAL, Unsupported, contract

ROLE = 128  # threads
b, n, m = T.dynamic("b"), T.dynamic("n"), T.dynamic("m")


@T.prim_func
def kernel(
    Q: T.Tensor((b, n, ROLE), "float32"),
    A: T.Tensor((b, n, m, ROLE), "float32"),
    rows: T.Tensor((b,), "int32"),
    B: T.Tensor((b, n, ROLE), "float32"),
):
    with T.Kernel(b, threads=2 * ROLE) as block:
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
                T.barrier_wait(q_free, 1 - i * T.max(T.min(rows[block], m), 1) % 2)
                q[thread] = Q[block, i, thread]
                T.barrier_arrive(q_ready)
                for t in T.serial(T.max(T.min(rows[block], m), 1)):
                    T.barrier_wait(free, (i * T.max(T.min(rows[block], m), 1) + t + 1) % 2)
                    row[thread] = A[block, i, t, thread]
                    T.barrier_arrive(ready)
        else:
            for i in T.serial(n):
                T.barrier_wait(q_ready, i % 2)
                total[0] = 0.0
                for t in T.serial(T.max(T.min(rows[block], m), 1)):
                    T.barrier_wait(ready, (i * T.max(T.min(rows[block], m), 1) + t) % 2)
                    total[0] += row[(thread + 1) % ROLE] * q[(thread + 1) % ROLE]
                    T.barrier_arrive(q_free)
                    T.barrier_arrive(free)
                B[block, i, thread - ROLE] = total[0]
                rows[block] = i


CONTRACT = contract(kernel, "B", "rows", sizes={"b": Size(high=16), "m": Size(1, 4096)})
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Unsupported("L1", "rounds that may differ in length")
