"""What is claimed of the kernel of ``double``."""

from __future__ import annotations

from collections.abc import Iterator

from ..kernels.build import PASS_CONFIGS
from ..kernels.double import Config, double_fwd
from ..reference.double import DOUBLE
from .suite import Proof


def proofs() -> Iterator[Proof]:
    """In bounds, and every element written once."""
    yield Proof("double", double_fwd(Config()), DOUBLE, {}, None, PASS_CONFIGS, layers=("L0", "L1"))
