"""Wrong: the running maximum starts at -2^30, but every score may be far below."""

import tilelang.language as T

from verdicts import Refuted, contract

rows = T.dynamic("rows")


@T.prim_func
def kernel(x: T.Tensor((rows, 4), "float32"), out: T.Tensor((rows, 4), "float32")):
    with T.Kernel(rows, threads=32) as row:
        p = T.alloc_fragment((1, 4), "float32")
        top = T.alloc_fragment((1,), "float32")
        total = T.alloc_fragment((1,), "float32")
        T.copy(x[row : row + 1, 0:4], p)
        T.fill(top, -(2.0**30))
        T.reduce_max(p, top, dim=1, clear=False)
        for _, j in T.Parallel(1, 4):
            p[0, j] = T.exp(p[0, j] - top[0])
        T.reduce_sum(p, total, dim=1)
        for _, j in T.Parallel(1, 4):
            out[row, j] = p[0, j] / total[0]


CONTRACT = contract(kernel, "out")


def reference(x):
    return x.softmax(-1)


VERDICT = Refuted("range", range="denominator")
