"""Right: a product in two tiles of K is the product."""

import tilelang.language as T

from verdicts import Proved, contract


@T.prim_func
def kernel(a: T.Tensor((32, 64), "float16"), b: T.Tensor((64, 32), "float16"), out: T.Tensor((32, 32), "float32")):
    with T.Kernel(1, threads=128):
        a_tile = T.alloc_shared((32, 32), "float16")
        b_tile = T.alloc_shared((32, 32), "float16")
        c_tile = T.alloc_fragment((32, 32), "float32")
        T.clear(c_tile)
        for k in T.serial(2):
            T.copy(a[0, k * 32], a_tile)
            T.copy(b[k * 32, 0], b_tile)
            T.gemm(a_tile, b_tile, c_tile)
        T.copy(c_tile, out)


CONTRACT = contract(kernel, "out")


def reference(a, b):
    return a.float() @ b.float()


VERDICT = Proved("L2")
