"""Right: the leading bits of a float, whichever they are, are cut to those that the table has."""

import tilelang.language as T

from verdicts import Proved, contract

M = T.dynamic("M")


@T.prim_func
def kernel(x: T.Tensor((M,), "float32"), table: T.Tensor((128,), "float32"), out: T.Tensor((M,), "float32")):
    with T.Kernel(M, threads=1) as i:
        leading = T.reinterpret(x[i], "uint32") >> T.uint32(24)
        out[i] = table[T.cast(leading & T.uint32(127), "int32")]


CONTRACT = contract(kernel, "out")
VERDICT = Proved("L0")
