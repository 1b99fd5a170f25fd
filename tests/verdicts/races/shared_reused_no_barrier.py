"""Wrong: the compiler puts both buffers in the same memory, and the second is written while the first is read."""

import tilelang.language as T

from verdicts import MANUAL, Refuted, contract


@T.prim_func
def kernel(A: T.Tensor((64,), "float32"), B: T.Tensor((64,), "float32")):
    with T.Kernel(1, threads=64):
        tx = T.get_thread_binding()
        first = T.alloc_shared((64,), "float32")
        second = T.alloc_shared((64,), "float32")
        kept = T.alloc_local((1,), "float32")
        first[tx] = A[tx]
        T.sync_threads()
        kept[0] = first[tx ^ 1]
        second[tx] = kept[0]
        T.sync_threads()
        B[tx] = second[tx ^ 3]


CONTRACT = contract(kernel, "B")
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Refuted("L1", race="second", when="tx == tx' ^ 1")
