"""Whatever TileLang calls a kernel, as the PrimFunc that it compiles and the pass configs that it compiles it with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tilelang.jit import JITImpl, JITKernel
from tvm.tirx import PrimFunc

from .extract import plain

_ANNOTATED = "tilelang_pass_configs"  # what a kernel says of its own build; other pass configs come before these


def prim_func(kernel: Any, statics: Mapping[str, float]) -> tuple[PrimFunc, dict[str, object]]:
    """Return the PrimFunc of a kernel and the pass configs that the kernel itself names.

    Args:
        kernel: a PrimFunc, a function decorated with ``@tilelang.jit``, or what calling that function returns.
        statics: values for the parameters of a decorated function, which leaves out those that it does not have.

    Raises:
        TypeError: the kernel is none of these, or a parameter of a decorated function has no value.
    """
    given: Mapping[str, object] = {}
    if isinstance(kernel, JITKernel):
        kernel, given = kernel.prim_func, kernel.pass_configs or {}
    elif isinstance(kernel, JITImpl):
        takes = kernel.signature.parameters
        lacking = [name for name, p in takes.items() if p.default is p.empty and name not in statics]
        if lacking:
            raise TypeError(f"kernel: expected values of {', '.join(lacking)} in statics, got {sorted(statics)}")
        named = {name: value for name, value in statics.items() if name in takes}
        kernel, given = kernel.get_tir(**named), kernel.pass_configs or {}
    if not isinstance(kernel, PrimFunc):
        raise TypeError(f"kernel: expected a PrimFunc or a @tilelang.jit function, got {type(kernel).__name__}")
    annotated = kernel.attrs.get(_ANNOTATED) if kernel.attrs else None
    return kernel, {**plain(annotated), **plain(given)}
