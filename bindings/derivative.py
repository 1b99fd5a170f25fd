"""What torch gets when it asks an operator for a derivative: the right one or an error, whoever asks, and never 0."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import _C, Tensor
from torch._C import DispatchKey, DispatchKeySet
from torch._C._functorch import peek_interpreter_stack
from torch._functorch.utils import enable_single_level_autograd_function
from torch._ops import OpOverload
from torch.autograd import forward_ad
from torch.autograd.graph import increment_version

from .ambient import untraced
from .sharding import accept

Implementation = Callable[..., Any]


def derivative(
    op: OpOverload, op_bwd: OpOverload | None, implementations: Mapping[DispatchKey, Implementation]
) -> Implementation:
    """Return what torch runs for ``op`` where it records derivatives: the implementation of its key Autograd.

    It lies below torch.func and torch.compile, so that eager calls and those meet the same one. A gradient is ``op_bwd``;
    where there is none, asking for it raises. Forward mode raises at the call, unless the results are indices. Where
    torch's next key is one of ``implementations``, that one is called without another dispatch. What writes into its arguments
    has no derivative at all.
    """
    name = op._schema.name.partition("::")[2]
    updated = [at for at, argument in enumerate(op._schema.arguments) if argument.is_write]

    def redispatched(keyset: DispatchKeySet) -> Implementation:
        def below(*args: Any) -> Any:
            with _C._AutoDispatchBelowAutograd():
                return op.redispatch(keyset & _C._after_autograd_keyset, *args)

        return below

    save, backward = (_nothing, _refusal(name)) if op_bwd is None else _gradient(op, op_bwd)

    def forward(ctx: Any, below: Implementation, *args: Any) -> Any:
        if peek_interpreter_stack() is None:
            out = below(*args)
        else:
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):  # for torch.func's levels below this one
                out = below(*args)
        save(ctx, args, out)
        return out

    methods = {"forward": staticmethod(forward), "backward": staticmethod(untraced(backward))}
    recorded: Any = type(name, (torch.autograd.function._SingleLevelFunction,), methods)

    defaults = [argument.default_value for argument in op._schema.arguments]

    def call(keyset: DispatchKeySet, *args: Any) -> Any:
        args = (*args, *defaults[len(args) :])  # torch leaves out what is the default
        tensors = [a for a in args if isinstance(a, Tensor)]
        below = implementations.get(_next_key(keyset.raw_repr()))
        if below is None:
            accept(name, tensors)
            below = redispatched(keyset)
        if updated:
            _without_derivative(name.removesuffix("_fwd"), tensors)
            increment_version(args[at] for at in updated if not args[at].is_inference())
            return below(*args)
        if _has_tangent(tensors):
            out = below(*args)
            if any(o.is_floating_point() for o in (out if isinstance(out, tuple) else (out,))):  # indices have none
                raise NotImplementedError(f"{name}: expected no tangent, got one: no derivative in forward mode")
            return out
        if not torch.is_grad_enabled() or not any([t.requires_grad for t in tensors]):  # noqa: C419  a list is faster
            return below(*args)
        if peek_interpreter_stack() is None:
            return recorded.apply(below, *args)
        with enable_single_level_autograd_function():
            return recorded.apply(below, *args)

    return untraced(call)


def _without_derivative(name: str, tensors: Sequence[Tensor]) -> None:
    """Raise if a derivative is asked for of an operator that writes into its arguments."""
    if _has_tangent(tensors):
        raise NotImplementedError(f"{name}: expected no tangent, got one: no derivative in forward mode")
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        raise RuntimeError(
            f"{name}: expected no derivative, got a tensor that requires one: it writes into its arguments; call it under"
            " torch.no_grad()"
        )


@functools.cache
def _next_key(keyset: int) -> DispatchKey:
    """Return the key that torch would dispatch to after autograd's, of the keys of a call in their raw form."""
    return (DispatchKeySet.from_raw_repr(keyset) & _C._after_autograd_keyset).highestPriorityTypeId()


def _gradient(op: OpOverload, op_bwd: OpOverload) -> tuple[Callable[..., None], Callable[..., Any]]:
    """Return what is saved of a call of ``op``, and its backward by ``op_bwd``.

    The names in the schemas say how both belong together. ``op_bwd`` takes ``grad_<result>`` for each result of ``op``
    that has a derivative, which are the first ones, then any arguments and results of ``op`` by their own names, tensors
    first. It returns ``grad_<argument>`` for each argument that has a gradient.
    """
    arguments, results = _names(op._schema.arguments), _names(op._schema.returns)
    derived = sum(f"grad_{name}" in _names(op_bwd._schema.arguments) for name in results)
    taken = op_bwd._schema.arguments[derived:]
    wanted = [(arguments + results).index(name) for name in _names(taken)]
    tensors = sum("Tensor" in str(argument.type) for argument in taken)
    has_gradient = [name.removeprefix("grad_") for name in _names(op_bwd._schema.returns)]

    def save(ctx: Any, args: tuple[Any, ...], out: Any) -> None:
        everything = (*args, *out) if isinstance(out, tuple) else (*args, out)
        if derived < len(results):
            ctx.mark_non_differentiable(*out[derived:])
        values = [everything[at] for at in wanted]
        ctx.save_for_backward(*values[:tensors])
        ctx.statics = values[tensors:]

    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        found = op_bwd(*grads[:derived], *ctx.saved_tensors, *ctx.statics)
        by_name = dict(zip(has_gradient, found if isinstance(found, tuple) else (found,), strict=True))
        return None, *(by_name.get(name) for name in arguments)

    return save, backward


def _nothing(ctx: Any, args: tuple[Any, ...], out: Any) -> None:
    """Save nothing: there is no backward."""


def _refusal(name: str) -> Callable[..., Any]:
    """Return a backward that raises: of a gradient, which has no derivative again, or of what has none at all."""
    first = name.removesuffix("_bwd")
    many = (
        "at most one derivative, got a request for a second"
        if first != name
        else "no derivative, got a request for one"
    )

    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(f"{first}: expected {many}")

    return backward


def _names(declared: Sequence[Any]) -> list[str]:
    """Return the names of a schema's arguments or results."""
    return [d.name for d in declared]


def _has_tangent(tensors: Sequence[Tensor]) -> bool:
    """Return whether one of the tensors carries a tangent of forward mode; asked of torch only where there may be one.

    In what torch.compile traces at a level of forward_ad that began outside, tangents are lost: there each may have one.
    """
    if peek_interpreter_stack() is None:
        if forward_ad._current_level < 0:
            return False
        if any(type(t).__name__ == "FunctionalTensor" for t in tensors):
            return True
    return any(torch._VF._unpack_dual(t, level=0)[1] is not None for t in tensors)
