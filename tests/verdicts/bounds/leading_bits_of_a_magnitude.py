"""Open: the table has the leading bits of every magnitude, but the bits of what is computed are not modelled."""

import tilelang.language as T

from verdicts import Unknown, contract

M = T.dynamic("M")


@T.prim_func
def kernel(x: T.Tensor((M,), "float32"), table: T.Tensor((128,), "float32"), out: T.Tensor((M,), "float32")):
    with T.Kernel(M, threads=1) as i:
        leading = T.reinterpret(T.abs(x[i]), "uint32") >> T.uint32(24)
        out[i] = table[T.cast(leading, "int32")]


CONTRACT = contract(kernel, "out")
VERDICT = Unknown("L0", bounds="read of table ... depends on tirx.reinterpret, which is not modelled")
