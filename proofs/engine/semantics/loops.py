"""The names of a kernel's loops, by which a proof says what holds in each.

It is not trusted: an invariant is checked of whichever loop has its name, once, and refused of a second one.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from ..compiler.nodes import statements
from .turns import meets

_SERIAL = 0  # tirx.ForKind


def serial_loops(prim_func: Any) -> dict[Any, str]:
    """Return the sequential loops by name: that of the variable, with #0, #1, ... in order where several share it.

    Loops in which roles meet are one loop.
    """
    loops = [s for s in statements(prim_func.body) if isinstance(s, tirx.For) and int(s.kind) == _SERIAL]
    names = [str(loop.loop_var.name) for loop in loops]
    return {
        loop: name if names.count(name) == 1 or meets(loop) else f"{name}#{names[:i].count(name)}"
        for i, (loop, name) in enumerate(zip(loops, names, strict=True))
    }
