"""Wrong: the rows of which the flag is not set are left out of an output that is to be written."""

import tilelang.language as T

from lemmata.reference.contract import Contract, Size
from verdicts import Refuted

n = T.dynamic("n")


@T.prim_func
def kernel(flag: T.Tensor((n,), "int32"), x: T.Tensor((n, 32), "float32"), out: T.Tensor((n, 32), "float32")):
    with T.Kernel(n, threads=32) as block:
        tx = T.get_thread_binding()
        if flag[block] > 0:
            out[block, tx] = x[block, tx]


CONTRACT = Contract.of(kernel, sizes={"n": Size(0, 2**24)}, outputs=["out"])
VERDICT = Refuted("L1", coverage="every element of out is written")
