"""Wrong: the last tile of K begins so early that it is whole, and counts elements of the one before again."""

import tilelang.language as T

from verdicts import Unproved, contract

K, TILE = 100, 32


@T.prim_func
def kernel(a: T.Tensor((32, K), "float16"), b: T.Tensor((K, 32), "float16"), out: T.Tensor((32, 32), "float32")):
    with T.Kernel(1, threads=128):
        a_tile = T.alloc_shared((32, TILE), "float16")
        b_tile = T.alloc_shared((TILE, 32), "float16")
        c_tile = T.alloc_fragment((32, 32), "float32")
        T.clear(c_tile)
        for k in T.Pipelined(T.ceildiv(K, TILE), num_stages=2):
            T.copy(a[0, T.min(k * TILE, K - TILE)], a_tile)
            T.copy(b[T.min(k * TILE, K - TILE), 0], b_tile)
            T.gemm(a_tile, b_tile, c_tile)
        for i, j in T.Parallel(32, 32):
            out[i, j] = T.max(c_tile[i, j], 0)


CONTRACT = contract(kernel, "out")


def reference(a, b):
    return (a.float() @ b.float()).relu()


VERDICT = Unproved("L2", equivalence="out")
