"""Right: a barrier stands between writing a tile along its rows and reading it along its columns."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import MANUAL, Proved, contract

M, N = T.dynamic("M"), T.dynamic("N")


@T.prim_func
def kernel(x: T.Tensor((M, N), "float32"), out: T.Tensor((N, M), "float32")):
    with T.Kernel(T.ceildiv(M, 32), T.ceildiv(N, 32), threads=128) as (bx, by):
        tile = T.alloc_shared((32, 32), "float32")
        lane, first = T.get_thread_binding() % 32, T.get_thread_binding() // 32
        for step in T.serial(8):
            i = step * 4 + first
            if bx * 32 + i < M and by * 32 + lane < N:
                tile[i, lane] = x[bx * 32 + i, by * 32 + lane]
        T.sync_threads()
        for step in T.serial(8):
            j = step * 4 + first
            if by * 32 + j < N and bx * 32 + lane < M:
                out[by * 32 + j, bx * 32 + lane] = tile[lane, j]


CONTRACT = contract(kernel, "out", sizes={"N": Size(high=65535 * 32)})
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Proved("L0", "L1")
