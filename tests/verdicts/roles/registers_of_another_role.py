"""Wrong: the second role reads registers that the first filled; each thread has registers of its own."""

import tilelang.language as T

from verdicts import MANUAL, Refuted, contract

ROLE = 128  # threads


@T.prim_func
def kernel(A: T.Tensor((2, ROLE), "float32"), B: T.Tensor((2, ROLE), "float32")):
    with T.Kernel(1, threads=2 * ROLE):
        first, second = T.alloc_fragment((ROLE,), "float32"), T.alloc_fragment((ROLE,), "float32")
        row = T.alloc_shared((ROLE,), "float32", scope="shared")
        ready = T.alloc_barrier(ROLE)
        thread = T.get_thread_binding()
        if thread < ROLE:
            T.copy(A[0, :], first)
            T.copy(first, row)
            T.barrier_arrive(ready)
            T.copy(first, B[0, :])
        else:
            T.copy(A[1, :], second)
            T.barrier_wait(ready, 0)
            for i in T.Parallel(ROLE):
                second[i] = second[i] + first[i] - row[i]
            T.copy(second, B[1, :])


CONTRACT = contract(kernel, "B")
OPTIONS = {"pass_configs": MANUAL}


def reference(A):
    return A


VERDICT = Refuted("L2", uninitialised="registers that several roles use: first")
