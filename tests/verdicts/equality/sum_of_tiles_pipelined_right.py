"""Right: a product in a pipeline of tiles of K, the last of them ragged and filled up with zeros, is the product."""

import tilelang.language as T

from verdicts import Proved, contract

K, TILE = 100, 32


@T.prim_func
def kernel(a: T.Tensor((32, K), "float16"), b: T.Tensor((K, 32), "float16"), out: T.Tensor((32, 32), "float32")):
    with T.Kernel(1, threads=128):
        a_tile = T.alloc_shared((32, TILE), "float16")
        b_tile = T.alloc_shared((TILE, 32), "float16")
        c_tile = T.alloc_fragment((32, 32), "float32")
        T.clear(c_tile)
        for k in T.Pipelined(T.ceildiv(K, TILE), num_stages=2):
            T.copy(a[0, k * TILE], a_tile)
            T.copy(b[k * TILE, 0], b_tile)
            T.gemm(a_tile, b_tile, c_tile)
        for i, j in T.Parallel(32, 32):
            out[i, j] = T.max(c_tile[i, j], 0)


CONTRACT = contract(kernel, "out")


def reference(a, b):
    return (a.float() @ b.float()).relu()


VERDICT = Proved("L2")
