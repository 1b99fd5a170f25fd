"""Prove a TileLang kernel of one's own, in a program as here, by pytest as in test_scale.py, or by the command.

    lemmata prove examples/prove_your_kernel/scale.py:scale --junit verdicts.xml

The command reads the names ``contract``, ``reference`` and ``options``. Needs: pip install 'lemmata[proofs]', and no GPU.
"""

from pathlib import Path

import tilelang.language as T
import torch

from lemmata.proofs import verify
from lemmata.reference.contract import Contract, Elements, Size

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


contract = Contract.of(
    scale,  # names its tensors, their shapes and dtypes
    sizes={"rows": Size(0, 2**24)},
    outputs=["y"],
    elements={"x": Elements(finite=True), "factor": Elements(finite=True)},
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
