"""Right: the product, which passes 2^31 long before i does, is kept in 64 bits."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import Proved, contract

count, length = T.dynamic("count"), T.dynamic("length", "int64")


@T.prim_func
def kernel(x: T.Tensor((length,), "float32"), out: T.Tensor((count,), "float32")):
    with T.Kernel(T.ceildiv(count, 128), threads=128) as block:
        start = T.alloc_var("int64")
        i = block * 128 + T.get_thread_binding()
        if i < count:
            start = T.cast(i, "int64") * 4096
            out[i] = T.if_then_else(start < length, x[start], 0.0)


CONTRACT = contract(kernel, "out", sizes={"length": Size(1, 2**40)})
VERDICT = Proved("L0")
