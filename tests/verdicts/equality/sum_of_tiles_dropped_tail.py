"""Wrong: the second tile of K is left out."""

import tilelang.language as T

from verdicts import Unproved, contract


@T.prim_func
def kernel(a: T.Tensor((32, 64), "float16"), b: T.Tensor((64, 32), "float16"), out: T.Tensor((32, 32), "float32")):
    with T.Kernel(1, threads=128):
        a_tile = T.alloc_shared((32, 32), "float16")
        b_tile = T.alloc_shared((32, 32), "float16")
        c_tile = T.alloc_fragment((32, 32), "float32")
        T.clear(c_tile)
        for k in T.serial(1):
            T.copy(a[0, k * 32], a_tile)
            T.copy(b[k * 32, 0], b_tile)
            T.gemm(a_tile, b_tile, c_tile)
        T.copy(c_tile, out)


CONTRACT = contract(kernel, "out")


def reference(a, b):
    return a.float() @ b.float()


VERDICT = Unproved("L2", equivalence="out")
