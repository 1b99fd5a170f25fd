"""Refused: the contract bounds the elements of a tensor of floats."""

import tilelang.language as T

from lemmata.reference.contract import Elements
from verdicts import MANUAL, Unsupported, contract

M = T.dynamic("M")


@T.prim_func
def kernel(x: T.Tensor((M,), "float32"), out: T.Tensor((M,), "float32")):
    with T.Kernel(M, threads=1) as row:
        out[row] = x[row]


CONTRACT = contract(kernel, "out", elements={"out": Elements(0, 2)})
OPTIONS = {"pass_configs": MANUAL}
VERDICT = Unsupported("L0", "whose elements the contract bounds")
