"""How an operator enters torch: schema, CPU reference, CUDA kernel, fake, derivative and count of FLOPs in one call."""

from __future__ import annotations

import functools
import importlib
import numbers
import operator
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._ops import OpOverload
from torch.utils.flop_counter import register_flop_formula

from ..reference.contract import Contract
from ..shipping import bring
from . import flops as count
from .ambient import shielded
from .derivative import derivative
from .flops import Formula
from .sharding import Shards, accept, shardable
from .shortcut import shortened
from .vmap import Rule

Implementation = Callable[..., Any]


def lazily(module: str, function: str) -> Implementation:
    """Return the launcher, its module imported at the first call: importing lemmata must not import tilelang."""

    @functools.cache
    def launcher() -> Implementation:
        try:
            bring()
            found: Implementation = getattr(importlib.import_module(module), function)
        except ModuleNotFoundError as error:
            if error.name != "tilelang":
                raise
            raise RuntimeError(
                "CUDA tensors need TileLang: pip install 'lemmata[cuda]'; CPU tensors use the reference"
            ) from error
        return found

    def call(*args: Any, **named: Any) -> Any:
        return launcher()(*args, **named)

    return call


def _on_cuda(kernel: Implementation, idle: Implementation | None, reference: Implementation) -> Implementation:
    """Return what runs on CUDA tensors: the kernel on their device, or the reference where a kernel has nothing to do."""

    def call(first: Tensor, *args: Any) -> Any:
        if idle is not None and idle(first, *args):
            return reference(first, *args)
        if first.get_device() == torch.cuda.current_device():  # where the launch goes
            return kernel(first, *args)
        with torch.cuda.device(first.device):
            return kernel(first, *args)

    return call


def define(
    name: str,
    schema: str,
    *,
    reference: Implementation,
    kernel: tuple[str, str] | Implementation,
    fake: Implementation,
    idle: Implementation | None = None,
    vmap: Rule | None = None,
    gradient: OpOverload | None = None,
    flops: Formula = count.none,
    shards: Shards = "batch",
) -> OpOverload:
    """Define ``torch.ops.lemmata.<name>`` and return its overload, bound once.

    Args:
        name: the operator's name.
        schema: arguments and results in torch's notation.
        reference: the CPU implementation; it runs without autograd, so that CPU behaves as CUDA does.
        kernel: module and function of the CUDA launcher, imported at the first CUDA call; or what CUDA runs instead.
        fake: shapes and dtypes of the results, for torch.compile and torch.export.
        idle: whether a call leaves a kernel nothing to do, so that the reference answers it on CUDA too.
        vmap: the rule of torch.vmap.
        gradient: the operator of the gradients, as ``derivative`` wants it; None: there is no derivative.
        flops: the count of floating-point operations from shapes.
        shards: what DTensors may be sharded along.
    """
    qualified = f"lemmata::{name}"
    torch.library.define(qualified, schema)
    overload: OpOverload = getattr(torch.ops.lemmata, name).default
    cuda = _on_cuda(lazily(*kernel) if isinstance(kernel, tuple) else kernel, idle, reference)
    by_key = IMPLEMENTATIONS[name] = {DispatchKey.CPU: shielded(reference), DispatchKey.CUDA: shielded(cuda)}
    for key, implementation in by_key.items():
        torch.library.impl(qualified, key.name, implementation)
    torch.library.register_fake(qualified, fake)
    recorded = derivative(overload, gradient, by_key)
    _LIBRARY.impl(name, recorded, "Autograd", with_keyset=True)  # type: ignore[no-untyped-call]
    if vmap:
        torch.library.register_vmap(qualified, vmap(overload))
    register_flop_formula(overload.overloadpacket)(flops)
    shardable(overload, shards)
    return overload


def short(overload: OpOverload) -> Implementation:
    """Return what calls the operator, past torch's dispatcher where that would add nothing."""
    return shortened(overload, IMPLEMENTATIONS[overload._schema.name.partition("::")[2]])


IMPLEMENTATIONS: dict[str, dict[DispatchKey, Implementation]] = {}
"""What runs below autograd, by operator and key."""

_LIBRARY = torch.library.Library("lemmata", "FRAGMENT")  # type: ignore[no-untyped-call]  # its registrations live as long as it


def check(contract: Contract, *tensors: Tensor, **statics: float) -> None:
    """Check a call of a public function; what torch.compile traces, the fakes check."""
    if not torch.compiler.is_compiling():
        accept(contract.op, tensors)
        contract.check(*tensors, **statics)


def plain(value: Any) -> Any:
    """Return Python's number for one of numpy's, and anything else as it is."""
    if type(value) in _PYTHONS or torch.compiler.is_compiling() or isinstance(value, _SYMBOLS):
        return value
    if isinstance(value, numbers.Integral):
        return operator.index(value)
    return float(value) if isinstance(value, numbers.Real) else value


_PYTHONS = {int, float, bool, type(None), Tensor}
_SYMBOLS = torch.SymInt, torch.SymFloat, torch.SymBool


def checks_results(op: str, *tensors: Tensor) -> bool:
    """Return whether LEMMATA_CHECK=1 asks that results be checked; what torch.compile has traced is not.

    Raises:
        RuntimeError: it asks, and here nothing can wait for a result.
    """
    if torch.compiler.is_compiling() or os.environ.get("LEMMATA_CHECK") != "1":
        return False
    if where := _unreadable(tensors):
        raise RuntimeError(f"{op}: LEMMATA_CHECK=1: expected results that can be read, got {where}: unset it there")
    return True


def _unreadable(tensors: tuple[Tensor, ...]) -> str | None:
    """Return what keeps results from being read, if anything does."""
    from torch._subclasses.fake_tensor import FakeTensor

    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return "the capture of a CUDA graph"
    levels = torch._C._functorch.get_interpreter_stack() or []
    if any(level.key() == torch._C._functorch.TransformType.Vmap for level in levels):
        return "a call under torch.vmap"
    if any(isinstance(t, FakeTensor) for t in tensors):
        return "a FakeTensor"
    return "a tensor on meta" if any(t.is_meta for t in tensors) else None
