"""How an operator enters torch: schema, CPU reference, CUDA kernel and fake in one call, its derivative in another."""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.autograd import forward_ad

from .vmap import Rule

Implementation = Callable[..., Any]


def lazily(module: str, function: str) -> Implementation:
    """The launcher, its module imported at the first call: importing lemmata must not import tilelang."""

    @functools.cache
    def launcher() -> Implementation:
        try:
            found: Implementation = getattr(importlib.import_module(module), function)
        except ModuleNotFoundError as error:
            if error.name != "tilelang":
                raise
            raise RuntimeError(
                "CUDA tensors need TileLang: pip install 'lemmata[cuda]'; CPU tensors use the reference"
            ) from error
        return found

    def call(first: Tensor, *args: Any, **named: Any) -> Any:
        with torch.cuda.device(first.device):  # the launch goes to the current device
            return launcher()(first, *args, **named)

    return call


def _unless(idle: Implementation, reference: Implementation, kernel: Implementation) -> Implementation:
    def call(*args: Any) -> Any:
        return reference(*args) if idle(*args) else kernel(*args)

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
    """
    qualified = f"lemmata::{name}"
    torch.library.define(qualified, schema)
    reference = torch.no_grad()(reference)
    cuda = lazily(*kernel) if isinstance(kernel, tuple) else torch.no_grad()(kernel)
    torch.library.impl(qualified, "CPU", reference)
    torch.library.impl(qualified, "CUDA", _unless(idle, reference, cuda) if idle else cuda)
    torch.library.register_fake(qualified, fake)
    overload: OpOverload = getattr(torch.ops.lemmata, name).default
    if vmap:
        torch.library.register_vmap(qualified, vmap(overload))
    return overload


def differentiable_once(name: str, op: OpOverload, op_bwd: OpOverload) -> Implementation:
    """Return a function that calls ``op`` and has ``op_bwd`` as its derivative, but no second derivative.

    The names in the schemas of both say how they belong together. ``op_bwd`` takes ``grad_<result>`` for each result of
    ``op``, then any arguments and results of ``op`` by their own names, tensors first. It returns ``grad_<argument>`` for
    each argument that has a gradient.

    Args:
        name: the public function's, for the message that refuses a second derivative.
        op: the overload of the operator.
        op_bwd: the overload of the operator of its gradients.
    """
    arguments, results = _names(op._schema.arguments), _names(op._schema.returns)
    wanted = [(arguments + results).index(name) for name in _names(op_bwd._schema.arguments)[len(results) :]]
    gradients = _names(op_bwd._schema.returns)
    has_gradient = [arguments.index(gradient.removeprefix("grad_")) for gradient in gradients]
    _GRADIENTS[name] = _gradient(name, op_bwd)

    class Once(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*args: Any) -> Any:
            return op(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            everything = (*inputs, *output) if isinstance(output, tuple) else (*inputs, output)
            values = [everything[at] for at in wanted]
            ctx.save_for_backward(*[v for v in values if isinstance(v, Tensor)])
            ctx.statics = [v for v in values if not isinstance(v, Tensor)]

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            tensors = (*grads, *ctx.saved_tensors)
            call = _GRADIENTS[name].apply if wants_grad(*tensors) else op_bwd
            found = call(*tensors, *ctx.statics)
            out: list[Tensor | None] = [None] * len(arguments)
            for at, grad in zip(has_gradient, found if isinstance(found, tuple) else (found,), strict=True):
                out[at] = grad
            return tuple(out)

    _declare(Once.forward, arguments)

    def call(*args: Any) -> Any:
        return Once.apply(*args) if wants_grad(*[args[at] for at in has_gradient]) else op(*args)  # type: ignore[no-untyped-call]

    return call


_GRADIENTS: dict[str, Any] = {}  # torch.compile finds a class that a global holds, but not one in a closure


def _gradient(name: str, op_bwd: OpOverload) -> type[torch.autograd.Function]:
    """The gradient as a function of its own, so that asking for its derivative raises, under torch.func too."""

    class Gradient(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*args: Any) -> Any:
            return op_bwd(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> None:
            raise RuntimeError(f"{name}: expected at most one derivative, got a request for a second")

    _declare(Gradient.forward, _names(op_bwd._schema.arguments))
    return Gradient


def _names(declared: Sequence[Any]) -> list[str]:
    """The names of a schema's arguments or results."""
    return [d.name for d in declared]


def _declare(function: Implementation, names: Iterable[str]) -> None:
    """Give a function of any arguments these as its signature: torch.compile passes it a context unless they fit."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    function.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])  # type: ignore[attr-defined]


@functools.cache
def say_once(message: str) -> None:
    """Warn that something runs otherwise than a caller may expect, through the logger ``lemmata``."""
    logging.getLogger("lemmata").warning(message)


def wants_grad(*tensors: Tensor) -> bool:
    """Whether a derivative of a call on these tensors may be asked for.

    Besides requires_grad these are forward-mode tangents and the transforms of torch.func: the autograd function then
    answers, or raises where it has no rule. The bare operator would answer with a derivative of zero.
    """
    if torch.is_grad_enabled() and any([t.requires_grad for t in tensors]):  # noqa: C419  faster than a generator
        return True
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def checks_results() -> bool:
    """Whether LEMMATA_CHECK=1 asks that results be checked; what torch.compile has traced is not."""
    return not torch.compiler.is_compiling() and os.environ.get("LEMMATA_CHECK") == "1"
