"""Wrong: all threads of a block store the same value to one place, two blocks two values."""

import tilelang.language as T

from verdicts import Refuted, contract


@T.prim_func
def kernel(x: T.Tensor((32,), "int32"), out: T.Tensor((1,), "int32")):
    with T.Kernel(2, threads=32) as (block,):
        out[0] = x[block]


CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L1", uniqueness="no two executions write the same element of out", when="bx != bx'")
