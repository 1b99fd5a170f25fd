"""Right: a counter of at most 1 for each of 2^31 - 2 elements is still a 32-bit number."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import MANUAL, Proved, contract

N = T.dynamic("N")


@T.prim_func
def kernel(x: T.Tensor((N,), "int32"), out: T.Tensor((64,), "int32")):
    with T.Kernel(1, threads=64):
        count = T.alloc_local((2,), "int32")
        count[0] = 0
        count[1] = 0
        for j in T.serial(N):
            count[0] += T.if_then_else(x[j] > 0, 1, 0)
        out[T.get_thread_binding()] = count[0]


CONTRACT = contract(kernel, "out", sizes={"N": Size(1, 2**31 - 2)})
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Proved("L0")
