"""Wrong: 132 blocks take turns as if they were 133, so the last one may be missing."""

import tilelang.language as T

from verdicts import Refuted, contract

count = T.dynamic("count")


@T.prim_func
def kernel(x: T.Tensor((count,), "float32"), out: T.Tensor((count,), "float32")):
    with T.Kernel(132, threads=128) as block:
        tx = T.get_thread_binding()
        for k in T.serial(T.ceildiv(count, 133 * 128)):
            i = (k * 132 + block) * 128 + tx
            if i < count:
                out[i] = x[i]


CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L1", coverage="every element of out is written")
