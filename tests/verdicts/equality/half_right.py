"""Right: the first half of each row."""

import tilelang.language as T

from verdicts import Proved, contract

rows = T.dynamic("rows")


@T.prim_func
def kernel(x: T.Tensor((rows, 256), "float32"), out: T.Tensor((rows, 128), "float32")):
    with T.Kernel(rows, threads=128) as row:
        lane = T.get_thread_binding()
        out[row, lane] = x[row, lane]


CONTRACT = contract(kernel, "out")


def reference(x):
    return x[:, :128]


VERDICT = Proved("L2")
