"""Wrong: the guard of the last dimension lets one too many through."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import Refuted, contract

B, S, K = T.dynamic("B"), T.dynamic("S"), T.dynamic("K")


@T.prim_func
def kernel(x: T.Tensor((B, S, K), "float32"), out: T.Tensor((B, S, 2), "float32")):
    with T.Kernel(S * 2, 5, B, threads=32) as (block, part, b):
        at = (T.ceildiv(K, 64) + 2) * part // 5 * 64 + T.get_thread_binding() - 128
        if at >= 0 and at < K + 1:
            out[b, block // 2, block % 2] = x[b, block // 2, at]


CONTRACT = contract(kernel, "out", sizes={"B": Size(high=65535), "S": Size(high=2**30 - 1), "K": Size(high=2**13)})
VERDICT = Refuted("L0", bounds="read of x")
