"""The inputs of references as symbolic tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lemmata.reference.contract import Contract, TensorSpec

from ..forms import extended
from ..forms import normal_form as nf
from ..forms.extended import Value
from ..forms.normal_form import Form
from .pull_array import Integers
from .symbolic_torch import SymbolicTensor


def symbolic_input(
    name: str,
    shape: Sequence[Form | int],
    integer: Integers | None = None,
    *,
    raw: bool = False,
) -> SymbolicTensor:
    """Return the input of that name, whose elements are the atoms that the kernel's reads are.

    ``raw``: any floats.
    """
    kind = extended.Raw if raw else Value
    return SymbolicTensor(shape, lambda *index: kind(nf.read(name, *index)), integer=integer)


def integers(contract: Contract, spec: TensorSpec, dtype: torch.dtype) -> Integers | None:
    """Return what a contract says of a tensor's elements as integers of a type; None of a type of floats."""
    known = Integers.of(dtype)
    low, high = (contract.sizes[n].high if isinstance(n, str) else n for n in (spec.elements.low, spec.elements.high))
    if known is None or low is None:
        return known
    return Integers(dtype, max(known.low, low), known.high if high is None else min(known.high, high - 1))
