"""Right: the compiler makes the pipeline of three stages, its waits and its barriers."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import Proved, contract

tiles = T.dynamic("tiles")


@T.prim_func
def kernel(
    A: T.Tensor((tiles, 64, 32), "bfloat16"), B: T.Tensor((tiles, 32, 32), "bfloat16"), C: T.Tensor((64, 32), "float32")
):
    with T.Kernel(1, threads=128):
        a = T.alloc_shared((64, 32), "bfloat16")
        b = T.alloc_shared((32, 32), "bfloat16")
        c = T.alloc_fragment((64, 32), "float32")
        T.clear(c)
        for k in T.Pipelined(tiles, num_stages=3):
            T.copy(A[k, 0:64, 0:32], a)
            T.copy(B[k, 0:32, 0:32], b)
            T.gemm(a, b, c)
        T.copy(c, C)


CONTRACT = contract(kernel, "C", sizes={"tiles": Size(0, 2**20)})
OPTIONS = {"arch": "sm_80"}
VERDICT = Proved("L1")
