"""The short way into an operator: where nothing stands between a caller and its implementation, it is called at once.

torch's dispatcher takes as long as all the rest of a call. It is passed by where it would only find the implementation: eager
calls on plain tensors without a derivative, while no mode, transformation, tracer or profiler looks on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import _C, Tensor
from torch._C import DispatchKey
from torch._C._functorch import peek_interpreter_stack
from torch._ops import OpOverload
from torch.autograd import forward_ad

Implementation = Callable[..., Any]
_PLAIN = {Tensor, torch.nn.Parameter}


def shortened(op: OpOverload, implementations: Mapping[DispatchKey, Implementation]) -> Implementation:
    """Return what calls the operator: one of its implementations, by device, or torch's dispatcher."""

    def call(first: Tensor, *args: Any) -> Any:
        if torch.compiler.is_compiling() or not _alone([first, *[a for a in args if isinstance(a, Tensor)]]):
            return op(first, *args)
        if first.is_cuda:
            return implementations[DispatchKey.CUDA](first, *args)
        return implementations[DispatchKey.CPU](first, *args) if first.is_cpu else op(first, *args)

    return call


def _alone(tensors: list[Tensor]) -> bool:
    """Return whether nothing has a say between autograd and the implementation, nor autograd itself."""
    return (
        _PLAIN.issuperset(map(type, tensors))
        and not (torch.is_grad_enabled() and any([t.requires_grad for t in tensors]))  # noqa: C419  a list is faster
        and not any([t.is_neg() for t in tensors])  # noqa: C419
        and not _C._len_torch_dispatch_stack()
        and not _C._len_torch_function_stack()
        and peek_interpreter_stack() is None
        and forward_ad._current_level < 0
        and not _C._autograd._profiler_enabled()
        and _C._get_tracing_state() is None
    )
