"""Refused: all rounds read the first query, which each of them overwrites at its end."""

from dataclasses import replace

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import Unsupported, contract

ROLE, ROWS = 128, 3  # threads, rows of a round
n = T.dynamic("n")


@T.prim_func
def kernel(
    Q: T.Tensor((n, ROLE), "float32"), A: T.Tensor((n, ROWS, ROLE), "float32"), B: T.Tensor((n, ROLE), "float32")
):
    with T.Kernel(1, threads=2 * ROLE):
        q = T.alloc_shared((ROLE,), "float32", scope="shared")
        row = T.alloc_shared((ROLE,), "float32", scope="shared")
        total = T.alloc_fragment((ROLE,), "float32")
        q_ready, q_free = T.alloc_barrier(ROLE), T.alloc_barrier(ROLE)
        ready, free = T.alloc_barrier(ROLE), T.alloc_barrier(ROLE)
        thread = T.get_thread_binding()
        if thread < ROLE:
            for i in T.serial(n):
                T.barrier_wait(q_free, 1 - i * ROWS % 2)
                for j in T.Parallel(ROLE):
                    q[j] = Q[0, j]
                T.barrier_arrive(q_ready)
                for t in T.serial(ROWS):
                    T.barrier_wait(free, (i * ROWS + t + 1) % 2)
                    for j in T.Parallel(ROLE):
                        row[j] = A[i, t, j]
                    T.barrier_arrive(ready)
        else:
            for i in T.serial(n):
                T.barrier_wait(q_ready, i % 2)
                T.fill(total, 0.0)
                for t in T.serial(ROWS):
                    T.barrier_wait(ready, (i * ROWS + t) % 2)
                    for j in T.Parallel(ROLE):
                        total[j] += row[j] * q[j]
                    T.barrier_arrive(q_free)
                    T.barrier_arrive(free)
                for j in T.Parallel(ROLE):
                    B[i, j] = total[j]
                    Q[0, j] = 1.0


CONTRACT = contract(kernel, "B", "Q", sizes={"n": Size(1, 4096)})
CONTRACT = replace(CONTRACT, inputs=(*CONTRACT.inputs, CONTRACT.outputs[1]))


def reference(A, Q):
    return (A * Q[:1, None, :]).sum(1), Q * 0 + 1


VERDICT = Unsupported("L2", "Q")
