"""Right: the element that is compared is the one that is stored; nobody writes it between."""

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
        out[row, thread] = T.if_then_else(kept[thread] >= 0 and kept[thread] < N, kept[thread], -1)


CONTRACT = contract(kernel, "out", sizes={"N": Size(0, 2**20)}, elements={"out": Elements(-1, "N")})
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Proved("L0")
