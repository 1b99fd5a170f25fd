"""Right: an output of which each block writes its row if a flag is set; the others keep what they held."""

import tilelang.language as T

from lemmata.reference.contract import Contract, Size
from verdicts import Proved

n = T.dynamic("n")


@T.prim_func
def kernel(flag: T.Tensor((n,), "int32"), x: T.Tensor((n, 32), "float32"), out: T.Tensor((n, 32), "float32")):
    with T.Kernel(n, threads=32) as block:
        tx = T.get_thread_binding()
        if flag[block] > 0:
            out[block, tx] = x[block, tx]


CONTRACT = Contract.of(kernel, sizes={"n": Size(0, 2**24)}, outputs=[], updated=["out"])
VERDICT = Proved("L1")
