"""Wrong: a select evaluates both arms."""

import tilelang.language as T

from verdicts import Refuted, contract

n = T.dynamic("n")


@T.prim_func
def kernel(x: T.Tensor((n,), "float32"), out: T.Tensor((n, 2), "float32")):
    with T.Kernel(n, threads=2) as block:
        tx = T.get_thread_binding()
        inside = block + tx < n
        out[block, tx] = T.Select(inside, x[block + tx], T.float32(0.0))


CONTRACT = contract(kernel, "out")
VERDICT = Refuted("L0", bounds="read of x")
