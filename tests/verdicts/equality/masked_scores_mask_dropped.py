"""Wrong: in the reference a masked score weighs as much as any other."""

import tilelang.language as T

from verdicts import Unproved, contract


@T.prim_func
def kernel(x: T.Tensor((4,), "float32"), m: T.Tensor((4,), "int32"), out: T.Tensor((4,), "float32")):
    with T.Kernel(1, threads=4):
        s, top = T.alloc_fragment((1, 4), "float32"), T.alloc_fragment((1,), "float32")
        T.fill(top, -(2.0**30))
        for i in T.Parallel(4):
            s[0, i] = T.if_then_else(m[i] >= 0, x[i], -T.infinity("float32"))
        T.reduce_max(s, top, dim=1, clear=False)
        for i in T.Parallel(4):
            out[i] = T.exp(s[0, i] - top[0]) * T.exp(top[0])


CONTRACT = contract(kernel, "out")


def reference(x, m):
    return x.exp()


VERDICT = Unproved("L2", equivalence="out")
