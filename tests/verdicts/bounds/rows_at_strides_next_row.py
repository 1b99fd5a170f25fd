"""Wrong: a row beyond the last."""

import tilelang.language as T

from lemmata.reference.contract import Contract, Size
from verdicts import Refuted

rows, stride = T.dynamic("rows"), T.dynamic("stride")


@T.prim_func
def kernel(x: T.Tensor((rows, 32), "float32"), out: T.StridedTensor((rows, 32), (stride, 1), "float32")):
    with T.Kernel(rows, threads=32) as block:
        tx = T.get_thread_binding()
        out[block + 1, tx] = x[block, tx]


CONTRACT = Contract.of(
    kernel,
    sizes={"rows": Size(0, 2**24), "stride": Size(32, 2**12)},
    outputs=["out"],
)
VERDICT = Refuted("L0", bounds="write of out")
