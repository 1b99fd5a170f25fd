"""Refused: an annotation changes what is read beyond the end."""

import tilelang.language as T
import torch

from verdicts import Unsupported, contract

rows = T.dynamic("rows")


@T.prim_func
def kernel(x: T.Tensor((rows, 4), "float32"), out: T.Tensor((rows, 8), "float32")):
    with T.Kernel(rows, threads=32) as row:
        tile = T.alloc_shared((1, 8), "float32")
        T.annotate_safe_value({x: 1.0})
        T.copy(x[row, 0], tile)
        T.copy(tile, out[row, 0])


CONTRACT = contract(kernel, "out")


def reference(x):
    return torch.nn.functional.pad(x, (0, 4))


VERDICT = Unsupported("L2", "annotations")
