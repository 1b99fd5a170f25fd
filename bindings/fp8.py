"""Whether entries may be rounded as a cache in fp8 keeps them."""

from __future__ import annotations

from torch import Tensor

from ..reference.fp8 import BLOCK


def admits_fp8(op: str, simulate_fp8: bool, norm_weight: Tensor, rotation: Tensor) -> None:
    """Raise TypeError or ValueError unless it is whether entries are rounded to fp8, and they can be."""
    if not isinstance(simulate_fp8, bool):
        raise TypeError(f"{op}: simulate_fp8: expected bool, got {type(simulate_fp8).__name__}")
    if simulate_fp8 and isinstance(norm_weight, Tensor) and isinstance(rotation, Tensor) and rotation.ndim == 3:
        still = norm_weight.shape[-1] - 2 * rotation.shape[1]
        if still % BLOCK:
            raise ValueError(
                f"{op}: simulate_fp8: expected channels that do not rotate in blocks of {BLOCK}, got {still}"
            )
