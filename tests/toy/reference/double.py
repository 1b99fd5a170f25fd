"""Twice a vector: y_i = 2 x_i."""

from __future__ import annotations

import torch
from torch import Tensor

from .contract import Contract, Size, TensorSpec

_PROBES = {"N": 37}, {"N": 2**30}

DOUBLE = Contract(
    "double",
    {"N": Size(0, 2**30)},
    {},
    (TensorSpec("x", "N", (torch.float32,)),),
    (TensorSpec("out", "N", (torch.float32,)),),
    _PROBES,
)


def double(x: Tensor) -> Tensor:
    """The formula of this module's docstring."""
    return 2 * x
