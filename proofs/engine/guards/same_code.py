"""Whether the compiler makes the same of two kernels."""

from __future__ import annotations

from collections.abc import Mapping

from tvm.ir import structural_equal
from tvm.tirx import PrimFunc

from ..compiler.extract import ARCH, lower, shipped_with_guards


def same_code(
    first: PrimFunc, second: PrimFunc, *, pass_configs: Mapping[str, object] | None = None, arch: str = ARCH
) -> bool:
    """Return whether the builds that ship of two kernels are launched alike and run the same."""
    guards = shipped_with_guards(pass_configs)
    a, b = (lower(f, guards=guards, pass_configs=pass_configs, arch=arch) for f in (first, second))
    return all(structural_equal(getattr(a, part), getattr(b, part)) for part in ("device", "host"))
