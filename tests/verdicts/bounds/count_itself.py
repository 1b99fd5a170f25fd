"""Open: the counter is doubled."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import MANUAL, Unknown, contract

N = T.dynamic("N")


@T.prim_func
def kernel(x: T.Tensor((N,), "int32"), out: T.Tensor((64,), "int32")):
    with T.Kernel(1, threads=64):
        count = T.alloc_local((2,), "int32")
        count[0] = 1
        count[1] = 0
        for _ in T.serial(N):
            count[0] += count[0]
        out[T.get_thread_binding()] = count[0]


CONTRACT = contract(kernel, "out", sizes={"N": Size(1, 2**20)})
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Unknown("L0", overflow="private memory that a loop changes")
