"""What is claimed of the kernels that sum for a backward of attention (kernels/gradient_sums.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..kernels import gradient_sums
from ..kernels.build import PASS_CONFIGS
from ..kernels.gradient_sums import Config
from ..kernels.sparse_attention_config import PANEL
from ..reference.attention import BF16, F32, I32, OFFSET, SIZES, STATICS
from ..reference.contract import Contract, Elements, Size, Static, TensorSpec
from .attention_backward import BLOCKS
from .engine.base.report import LAYERS
from .engine.forms import normal_form as nf
from .engine.forms.entailment import Facts
from .engine.layers.comparison import against
from .engine.verify import Compare, Compared
from .suite import Proof

_D = {"D": STATICS["D"]}
_SAFE = ("L0", "L1", "range")


def _product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x.float() * y.float()).sum(-1)


_TOTAL = (F32,)
_ROWS = Size(1, 2**29)


def _adding(op: str, sizes: dict[str, Size], total: str, inputs: tuple[TensorSpec, ...], *probes: dict[str, int],
            **statics: Static) -> Contract:  # fmt: skip
    """Return the contract of a kernel that adds to a total."""
    spec = TensorSpec("total", total, _TOTAL)
    return Contract(op, sizes, _D | {"blocks": BLOCKS} | statics, (*inputs, spec), (spec,), probes)


_OF_ROWS = TensorSpec("x", "N 8 D", (BF16,)), TensorSpec("y", "N 8 D", (BF16,))
DELTA = Contract(
    "delta", {"N": _ROWS}, _D, _OF_ROWS, (TensorSpec("total", "N 8", _TOTAL),), ({"N": 1009}, {"N": 2**28})
)
WINDOW = _adding(
    "sum_window",
    {"B": SIZES["B"], "S": SIZES["S"], "P": SIZES["P"]},
    "B P+S D",
    (TensorSpec("parts", "B S window blocks D", (BF16,)),),
    {"B": 3, "S": 37, "P": 127},
    {"B": 1, "S": 2**10, "P": 2**20},
    window=STATICS["window"],
)
LISTED = _adding(
    "sum_listed",
    {"N": _ROWS, "R": Size(1, 2**26)},
    "R D",
    (
        TensorSpec("parts", "N blocks D", (BF16,)),
        TensorSpec("order", "N", (I32,), Elements(0, "N")),
        TensorSpec("starts", "R", (I32,), Elements(0)),
        TensorSpec("ends", "R", (I32,), Elements(0)),
    ),
    {"N": 1009, "R": 37},
    {"N": 2**28, "R": 2**26},
)
VISIBLE = _adding(
    "sum_visible",
    {"B": SIZES["B"], "S": SIZES["S"], "T": SIZES["T"]},
    "B T D",
    (TensorSpec("parts", "B S T blocks D", (BF16,)), OFFSET),
    {"B": 3, "S": 37, "T": 1009},
    {"B": 1, "S": 2**10, "T": 2**13},
    ratio=Static(int, 1, 65536),
)


def _by_panels(kernel: Any, known: Facts) -> Compared:
    """Compare ``delta`` with the product's sum, which it takes panel by panel."""
    with nf.tiled(Config().D, PANEL):
        return against(_product, DELTA)(kernel, known)


def _proof(op: str, factory: Callable[[Config], Any], claimed: Contract, cfg: Config, compare: Compare | None = None
           ) -> Proof:  # fmt: skip
    given = {name: getattr(cfg, name) for name in claimed.statics}
    layers = _SAFE if compare is None else LAYERS
    return Proof(op, factory(cfg), claimed, given, compare, PASS_CONFIGS, layers=layers)


def summing(op: str, cfg: Config) -> Iterator[Proof]:
    """Yield what is claimed of the sums of an operator's backward."""
    yield _proof(op, gradient_sums.delta, DELTA, cfg, _by_panels)
    yield _proof(op, gradient_sums.sum_window, WINDOW, cfg)
    if op == "csa":
        yield _proof(op, gradient_sums.sum_listed, LISTED, cfg)
    else:
        yield _proof(op, gradient_sums.sum_visible, VISIBLE, cfg)
