"""Wrong: all threads read registers that those of one role filled."""

import tilelang.language as T

from verdicts import MANUAL, Refuted, contract

ROLE = 128  # threads


@T.prim_func
def kernel(A: T.Tensor((ROLE,), "float32"), B: T.Tensor((ROLE,), "float32"), C: T.Tensor((ROLE,), "float32")):
    with T.Kernel(1, threads=2 * ROLE):
        mine = T.alloc_fragment((ROLE,), "float32")
        row = T.alloc_shared((ROLE,), "float32", scope="shared")
        ready = T.alloc_barrier(ROLE)
        thread = T.get_thread_binding()
        if thread < ROLE:
            T.copy(A, mine)
            T.copy(mine, row)
            T.barrier_arrive(ready)
        else:
            T.barrier_wait(ready, 0)
            T.copy(row, B)
        T.copy(mine, C)


CONTRACT = contract(kernel, "B", "C")
OPTIONS = {"pass_configs": MANUAL}


def reference(A):
    return A, A


VERDICT = Refuted("L2", uninitialised="mine ... may be read before it is written")
