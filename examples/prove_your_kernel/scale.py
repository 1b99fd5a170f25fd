"""Prove a TileLang kernel of one's own, in a program as here, by pytest as in test_scale.py, or by the command.

    lemmata prove examples/prove_your_kernel/scale.py:scale --junit verdicts.xml

The command reads the names ``contract``, ``reference`` and ``options``. Needs: pip install 'lemmata[proofs]', and no GPU.
"""

from pathlib import Path

import tilelang.language as T
import torch

from lemmata.proofs import verify
from lemmata.reference.contract import Contract, Elements, Size, TensorSpec

ROWS, COLUMNS = T.dynamic("rows"), 64


@T.prim_func
def scale(
    x: T.Tensor((ROWS, COLUMNS), "float32"),
    factor: T.Tensor((ROWS,), "float32"),
    y: T.Tensor((ROWS, COLUMNS), "float32"),
):
    with T.Kernel(T.ceildiv(ROWS, 4), threads=128) as block:
        for i, j in T.Parallel(4, COLUMNS):
            if block * 4 + i < ROWS:
                y[block * 4 + i, j] = x[block * 4 + i, j] * factor[block * 4 + i]


FP32, FINITE = (torch.float32,), Elements(finite=True)
contract = Contract(
    "scale",
    {"rows": Size(0, 2**24)},
    {},
    inputs=(TensorSpec("x", "rows 64", FP32, FINITE), TensorSpec("factor", "rows", FP32, FINITE)),
    outputs=(TensorSpec("y", "rows 64", FP32),),
    probes=({"rows": 1009}, {"rows": 2**24}),  # a ragged size and the largest: both must be admitted
)
options = {
    "pass_configs": {"tl.disable_safe_memory_legalize": True},  # of your build: no guards that hide an index
    "cache_key": Path(
        __file__
    ).read_text(),  # a verdict is kept as long as this file, which needs no other, is the same
}


def reference(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Return what the kernel must compute; it is run on symbols."""
    return x * factor[:, None]


if __name__ == "__main__":
    report = verify(scale, contract, reference=reference, **options)
    print(report)
    raise SystemExit(0 if report.complete else 1)
