"""Other libraries to time beside ours. Optional: one that cannot be imported is absent, and is said to be.

From PyPI: ``tile_kernels`` of tile-kernels, ``deep_gemm`` of sgl-deep-gemm, ``flash_mla`` of sgl-flash-mla, ``cudnn`` of
nvidia-cudnn-frontend, ``flashinfer`` of flashinfer-python.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from types import ModuleType

from torch import Tensor

Gradients = Callable[[], tuple[Tensor, ...]]
"""A call; gradients."""


def find(module: str) -> ModuleType | None:
    """Return the peer's module, or None where it is not installed or does not load here."""
    try:
        return importlib.import_module(module)
    except Exception:
        return None


def difference(x: Tensor, y: Tensor) -> float:
    """Return DeepGEMM's and FlashMLA's measure: 1 - 2 x·y / (x·x + y·y), in fp64."""
    x, y = x.double().flatten(), y.double().flatten()
    return float(1 - 2 * (x @ y) / (x @ x + y @ y))


def require_near(ours: Iterable[Tensor], theirs: Iterable[Tensor], limit: float, whose: str) -> None:
    """Require that results are near those of the reference or of a peer.

    Raises:
        RuntimeError: the ``difference`` of one is not below the limit.
    """
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if not (found := difference(a, b)) < limit:  # so NaN is refused
            raise RuntimeError(f"expected result {number} within {limit:g} of {whose}, got {found:.1e}")
