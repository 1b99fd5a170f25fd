"""Right: a branch for fewer than three, declared dead, and dead."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import LARGEST, Proved, contract

count = T.dynamic("count")


@T.prim_func
def kernel(x: T.Tensor((count,), "float32"), out: T.Tensor((count,), "float32")):
    with T.Kernel(T.ceildiv(count, 128), threads=128) as block:
        i = block * 128 + T.get_thread_binding()
        if i < count:
            out[i] = x[i]
            if count < 3:
                out[i] = x[i + 1]


CONTRACT = contract(kernel, "out", sizes={"count": Size(3, LARGEST)})
OPTIONS = {"dead": {"count < 3": "there are three"}}
VERDICT = Proved("L0", says="dead: if count < 3: there are three")
