"""Wrong: no execution reaches the branch, and nobody has declared it dead."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import LARGEST, Refuted, contract

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
VERDICT = Refuted("L0", hollow="no execution reaches this")
