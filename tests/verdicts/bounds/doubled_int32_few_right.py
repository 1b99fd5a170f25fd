"""Right: with at most 2^30 elements, twice the index fits 32 bits."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import Proved, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n,), "float32"), out: T.Tensor((n,), "float32")):
    with T.Kernel(T.ceildiv(n, 128), threads=128) as block:
        at = T.alloc_var("int32")
        i = block * 128 + T.get_thread_binding()
        if i < n:
            at = T.cast(i, "int32") * 2 + 1
            out[i] = x[at // 2]


CONTRACT = contract(kernel, "out", sizes={"n": Size(high=2**30)})
VERDICT = Proved("L0")
