"""Wrong: 200 000 bytes of shared memory do not fit sm_80."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import Refuted, contract

M, N = T.dynamic("M"), T.dynamic("N")


@T.prim_func
def kernel(out: T.Tensor((M, N), "float32")):
    with T.Kernel(M, N, threads=128) as (bx, by):
        tile = T.alloc_shared((50_000,), "float32")
        tx = T.get_thread_binding()
        tile[tx] = 1.0
        if tx == 0:
            out[bx, by] = tile[tx]


CONTRACT = contract(kernel, "out", sizes={"M": Size(high=2**31 - 1), "N": Size(high=65535)})
OPTIONS = {"arch": "sm_80"}
VERDICT = Refuted("L0", launch="200000 bytes")
