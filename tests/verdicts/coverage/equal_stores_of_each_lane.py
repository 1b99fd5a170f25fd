"""Wrong: each thread stores its place in its warp, of which the proof knows nothing."""

import tilelang.language as T

from verdicts import Refuted, contract


@T.prim_func
def kernel(x: T.Tensor((32,), "float32"), out: T.Tensor((1,), "float32")):
    with T.Kernel(1, threads=32):
        out[0] = x[0] + T.cast(T.get_lane_idx(), "float32")


CONTRACT = contract(kernel, "out")
VERDICT = Refuted(
    "L1",
    coverage="writes no place of its tile of out twice",
    uniqueness="no two executions write the same element of out",
)
