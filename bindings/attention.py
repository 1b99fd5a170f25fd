"""What the bindings of CSA and HCA share: checks, chunks of bounded memory, the bridge to autograd, torch.vmap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..reference.contract import Contract
from . import chunks
from .offset import for_each_sequence
from .registry import Implementation, wants_grad

_CHUNK = 2**24  # elements of the largest temporary, unless those of one query are more

Attention = Callable[..., tuple[Tensor, Tensor]]


def prepared(
    contract: Contract, q: Tensor, others: tuple[Tensor, ...], offset: int | Tensor, scale: float | None, **statics: int
) -> tuple[Tensor, float]:
    """Check a call; returns the offset as a tensor, and the scale."""
    if not isinstance(q, Tensor):
        raise TypeError(f"{contract.op}: q: expected a tensor, got {type(q).__name__}")
    if q.is_nested:
        raise TypeError(f"{contract.op}: q: expected a strided tensor, got a nested one")
    offset = for_each_sequence(contract.op, offset, q)
    if not torch.compiler.is_compiling():  # there, the fakes check
        contract.check(q, *others, offset, **statics, **({} if scale is None else {"scale": scale}))
    return offset, q.shape[-1] ** -0.5 if scale is None else scale


def pieces(q: Tensor, window_kv: Tensor, window: int, held: int) -> Iterator[tuple[slice, slice, slice]]:
    """Slices of the batch, of the queries and of the rows that these have in their windows.

    As many queries at a time as hold ``_CHUNK`` elements, if each holds ``held``; at least one.
    """
    P = window_kv.shape[1] - q.shape[1]
    for b, s in chunks.pieces(q, 0, max(_CHUNK // max(held, 1), 1)):
        yield b, s, slice(max(P + s.start - window + 1, 0), P + s.stop)


def zero_gradients(q: Tensor, *others: Tensor, like: Tensor) -> tuple[Tensor, ...]:
    """Where the gradients go: that of q in its dtype, the others, which are sums over queries, in that of ``like``."""
    return (q.new_empty(q.shape), *(like.new_zeros(t.shape) for t in others))


_OPERATORS: dict[str, tuple[Implementation, Implementation]] = {}


def with_gradient(name: str, fwd: Implementation, bwd: Implementation) -> Attention:
    """The operator as a function that is differentiable in its first four tensors, q to sink.

    Args:
        name: the public function's, for errors.
        fwd: tensors and static parameters to ``out`` and ``lse``.
        bwd: the gradients of both, the tensors, both results and the static parameters to the four gradients.
    """
    _OPERATORS[name] = fwd, bwd

    def call(*inputs: Any) -> tuple[Tensor, Tensor]:
        if wants_grad(*inputs[:4]):
            return _Attention.apply(name, *inputs)  # type: ignore[no-any-return, no-untyped-call]
        return fwd(*inputs)  # type: ignore[no-any-return]

    return call


class _AttentionBackward(torch.autograd.Function):
    """The gradient as a function of its own, so that asking for its derivative raises, under torch.func too."""

    generate_vmap_rule = True

    @staticmethod
    def forward(name: str, *inputs: Any) -> tuple[Tensor, ...]:
        return _OPERATORS[name][1](*inputs)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.name = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(f"{ctx.name}: expected at most one derivative, got a request for a second")


class _Attention(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(name: str, *inputs: Any) -> tuple[Tensor, Tensor]:
        return _OPERATORS[name][0](*inputs)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.name, *rest = inputs
        tensors = [a for a in rest if isinstance(a, Tensor)]
        ctx.save_for_backward(*tensors, *output)
        ctx.statics = rest[len(tensors) :]

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        inputs = (grad_out, grad_lse, *ctx.saved_tensors, *ctx.statics)
        if not torch.compiler.is_compiling() and wants_grad(grad_out, grad_lse, *ctx.saved_tensors):
            grads = _AttentionBackward.apply(ctx.name, *inputs)  # type: ignore[no-untyped-call]
        else:
            grads = _OPERATORS[ctx.name][1](*inputs)
        return (None, *grads, *[None] * (len(inputs) - 8))  # but for two gradients, two results and what has one


def one_by_one(overload: Implementation) -> None:
    """The rule of torch.vmap: a call for each; the sink has no batch with which another could be merged."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        calls = [
            overload(*(a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        results = tuple(map(torch.stack, zip(*calls, strict=True)))
        return results, (0,) * len(results)

    torch.library.register_vmap(overload, rule)  # type: ignore[arg-type]
