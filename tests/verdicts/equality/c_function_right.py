"""Right: a C function of the kernel's own is known by its text, and named in the verdict."""

import tilelang.language as T

from lemmata.reference.contract import Size
from verdicts import Proved, contract

SOURCE = """__device__ __forceinline__ float larger(float a, float b) {
  float c; asm("max.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b)); return c;
}
"""

rows = T.dynamic("rows")


@T.prim_func
def kernel(x: T.Tensor((rows, 32), "float32"), out: T.Tensor((rows, 32), "float32")):
    with T.Kernel(rows, threads=32, prelude=SOURCE) as row:
        for i in T.Parallel(32):
            out[row, i] = T.call_extern("float32", "larger", x[row, i], T.float32(0))


CONTRACT = contract(kernel, "out", sizes={"rows": Size(0, 2**20)})


def reference(x):
    return x.relu()


VERDICT = Proved("L0", "L1", "L2", unmodelled="larger", says="trusted: larger, C text of the kernel's own, is maxnan")
