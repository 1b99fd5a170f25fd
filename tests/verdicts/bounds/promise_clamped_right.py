"""Right: what comes out of memory is stored only where it keeps the promise."""

import tilelang.language as T

from lemmata.reference.contract import Elements, Size
from verdicts import MANUAL, Proved, contract

WIDTH = 64
M, N = T.dynamic("M"), T.dynamic("N")


@T.prim_func
def kernel(x: T.Tensor((M, N), "int32"), y: T.Tensor((M, WIDTH), "int32"), out: T.Tensor((M, WIDTH), "int32")):
    with T.Kernel(M, threads=WIDTH) as row:
        thread = T.get_thread_binding()
        kept = T.alloc_shared((WIDTH,), "int32")
        kept[thread] = y[row, thread]
        j = kept[thread]
        out[row, thread] = T.if_then_else(j >= 0 and j < N, j, -1)


CONTRACT = contract(kernel, "out", sizes={"N": Size(0, 2**20)}, elements={"out": Elements(-1, "N")})
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Proved("L0")
