"""``lemmata.double``."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..models import Model
from ..operators import Kernel
from ..reference import double as reference
from .registry import define


def _fake(x: Tensor) -> Tensor:
    reference.DOUBLE.check(x)
    return x.new_empty(x.shape)


_fwd = define(
    "double_fwd",
    "(Tensor x) -> (Tensor out)",
    reference=reference.double,
    kernel=("lemmata.kernels.double", "double"),
    fake=_fake,
)


def shipped(model: Model) -> Iterator[Kernel]:
    """Yield the kernel, with its config."""
    from ..kernels.double import Config, double_fwd

    yield double_fwd, Config()


def double(x: Tensor) -> Tensor:
    """Twice a vector, fp32 ``[N]``."""
    if not torch.compiler.is_compiling():  # there, the fakes check
        reference.DOUBLE.check(x)
    return _fwd(x)  # type: ignore[no-any-return]
