"""Right: the blocks of a group, 132 of them, take turns at the tiles of the group, 8 turns."""

import tilelang.language as T

from verdicts import Proved, contract

count = T.dynamic("count")


@T.prim_func
def kernel(x: T.Tensor((count,), "float32"), out: T.Tensor((count,), "float32")):
    with T.Kernel(T.ceildiv(count, 8 * 132 * 128), 132, threads=128) as (group, block):
        tx = T.get_thread_binding()
        for k in T.serial(T.min(T.ceildiv(count, 132 * 128) - group * 8, 8)):
            i = ((group * 8 + k) * 132 + block) * 128 + tx
            if i < count:
                out[i] = x[i]


CONTRACT = contract(kernel, "out")
VERDICT = Proved("L1")
