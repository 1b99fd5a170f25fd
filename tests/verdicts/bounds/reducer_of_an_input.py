"""Wrong: what is added is a number from memory, which may be any."""

import tilelang.language as T

from verdicts import Refuted, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n, 256), "float32"), amounts: T.Tensor((n,), "int32"), out: T.Tensor((n,), "int32")):
    with T.Kernel(n, threads=32) as block:
        count = T.alloc_reducer((1,), "int32", op="sum")
        total = T.alloc_fragment((1,), "int32")
        T.reducer_init(count)
        for i in T.Parallel(256):
            if x[block, i] > 0:
                T.reducer_update(count[0], amounts[block])
        T.finalize_reducer(count, total)
        if T.get_thread_binding() == 0:
            out[block] = total[0]


CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L0", overflow="does not overflow int32")
