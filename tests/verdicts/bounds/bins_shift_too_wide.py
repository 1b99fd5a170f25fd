"""Wrong: a 32-bit number is shifted by 32."""

import tilelang.language as T

from verdicts import MANUAL, Refuted, contract

N = T.dynamic("N")


@T.prim_func
def kernel(x: T.Tensor((N,), "float32"), out: T.Tensor((64,), "int32")):
    with T.Kernel(1, threads=64):
        thread = T.get_thread_binding()
        bins = T.alloc_shared((2048,), "int32")
        for j in T.serial(N):
            bits = T.reinterpret(x[j], "uint32")
            key = bits ^ T.if_then_else(bits >> T.uint32(31) != 0, T.uint32(0xFFFFFFFF), T.uint32(0x80000000))
            T.atomic_add(bins[T.cast(key >> T.uint32(21), "int32")], 1)
        out[thread] = 0
        for d in T.serial(33):
            if (thread >> d) % 2 == 1:
                out[thread] = thread & (1 << T.min(d, 5))


CONTRACT = contract(kernel, "out")
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Refuted("L0", overflow="d is less than 32")
