"""Refused: the loop may be left between a copy and its wait."""

import tilelang.language as T

from verdicts import MANUAL, Unsupported, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n, 8, 128), "float32"), out: T.Tensor((n, 8, 128), "float32")):
    with T.Kernel(n, threads=32) as block:
        tx = T.get_thread_binding()
        s = T.alloc_shared((128,), "float32")
        for k in T.serial(8):
            T.async_copy(x[block, k, :], s)
            if k > 3:
                T.loop_break()
            T.ptx_wait_group(0)
            T.sync_threads()
            for i in T.serial(4):
                out[block, k, i * 32 + tx] = s[i * 32 + tx]
            T.sync_threads()


OPTIONS = {"pass_configs": MANUAL}
CONTRACT = contract(kernel, "out")
VERDICT = Unsupported("L1", "a loop that ends early")
