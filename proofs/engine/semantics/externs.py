"""C functions that a kernel brings along: those known by their text, and what they compute over the reals."""

from __future__ import annotations

import re

from ..base.errors import Unsupported
from .algebra import Binary, Unary

# max.NaN of PTX: the larger of two floats, NaN if one of them is
_MAX_NAN = r"""__device__ __forceinline__ float (\w+)\(float a, float b\) \{
  float c; asm\("max\.NaN\.f32 %0, %1, %2;" : "=f"\(c\) : "f"\(a\), "f"\(b\)\); return c;
\}
"""
# ex2 of PTX: 2^x, 0 where that is below 2^-126
_EXP2 = r"""__device__ __forceinline__ float (\w+)\(float x\) \{
  float y; asm\("ex2\.approx\.ftz\.f32 %0, %1;" : "=f"\(y\) : "f"\(x\)\); return y;
\}
"""
Function = Unary | Binary
_KNOWN: dict[str, Function] = {_MAX_NAN: "maxnan", _EXP2: "exp2"}


def externs(source: str) -> dict[str, Function]:
    """Return the functions that a kernel's C text defines, by name.

    Raises:
        Unsupported: it holds anything else.
    """
    found: dict[str, Function] = {}
    for pattern, operator in _KNOWN.items():
        found |= {match[1]: operator for match in re.finditer(pattern, source)}
        source = re.sub(pattern, "", source)
    if source.strip():
        raise Unsupported(f"C text of the kernel's own: {source.strip().splitlines()[0]}")
    return found
