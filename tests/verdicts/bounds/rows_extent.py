"""Wrong: a loop of five steps over four rows of a private buffer."""

import tilelang.language as T

from verdicts import Refuted, contract

count = T.dynamic("count")


@T.prim_func
def kernel(x: T.Tensor((count, 4, 4), "float32"), out: T.Tensor((count, 4, 4), "float32")):
    with T.Kernel(T.ceildiv(count, 32), threads=32) as block:
        matrix = block * 32 + T.get_thread_binding()
        p = T.alloc_local((4, 4), "float32")
        s = T.alloc_shared((32,), "float32")
        s[matrix % 32] = 0.0
        if matrix < count:
            for i in T.unroll(4):
                for j in T.vectorized(4):
                    p[i, j] = x[matrix, i, j]
            for i in T.unroll(5):
                for j in T.unroll(4):
                    p[i, j] *= s[matrix % 32]
            for i in T.unroll(4):
                for j in T.unroll(4):
                    out[matrix, i, j] = p[i, j]


CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L0", bounds=" of p")
