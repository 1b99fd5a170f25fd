"""What the bindings of CSA and HCA share: checks, chunks of bounded memory, the bridge to autograd, torch.vmap."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..reference.contract import Contract
from . import chunks
from .offset import for_each_sequence
from .registry import Implementation, wants_grad

_NARROWEST = 128  # columns of a head in the kernels
_CHUNK = 2**24  # elements of the largest temporary, unless those of one query are more


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


def widened(launcher: Implementation) -> Implementation:
    """The launcher for narrow heads too: below 128 columns, which the kernels' roles share, rows are filled up with zeros.

    In a kernel of 64 columns the compiler has two roles meet at one barrier, as the proofs found.
    """

    def call(q: Tensor, window_kv: Tensor, compressed_kv: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        missing = _NARROWEST - q.shape[-1]
        if missing <= 0:
            out, lse = launcher(q, window_kv, compressed_kv, *others)
            return out, lse
        out, lse = launcher(*(pad(x, (0, missing)) for x in (q, window_kv, compressed_kv)), *others)
        return out[..., : q.shape[-1]].contiguous(), lse

    return call


_OPERATORS: dict[str, tuple[Implementation, Implementation]] = {}


def operators(name: str, fwd: Implementation, bwd: Implementation) -> str:
    """Say which operators the public function of that name runs; returns the name, for ``attention``.

    Args:
        name: the public function's.
        fwd: tensors and static parameters to ``out`` and ``lse``.
        bwd: the gradients of both, the tensors, both results and the static parameters to the four gradients.
    """
    _OPERATORS[name] = fwd, bwd
    return name


def attention(
    name: str,
    q: Tensor,
    window_kv: Tensor,
    compressed_kv: Tensor,
    sink: Tensor,
    indices: Tensor | None,
    offset: Tensor,
    ratio: int | None,
    window: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Run an operator, which has indices or a ratio; differentiable in q, window_kv, compressed_kv and sink."""
    call = _Attention.apply if wants_grad(q, window_kv, compressed_kv, sink) else _Attention.forward
    return call(name, q, window_kv, compressed_kv, sink, indices, offset, ratio, window, scale)


def _present(*arguments: Any) -> list[Any]:
    return [a for a in arguments if a is not None]


class _AttentionBackward(torch.autograd.Function):
    """The gradient as a function of its own, so that asking for its derivative raises, under torch.func too."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        name: str,
        grad_out: Tensor,
        grad_lse: Tensor,
        q: Tensor,
        window_kv: Tensor,
        compressed_kv: Tensor,
        sink: Tensor,
        indices: Tensor | None,
        offset: Tensor,
        out: Tensor,
        lse: Tensor,
        ratio: int | None,
        window: int,
        scale: float,
    ) -> tuple[Tensor, ...]:
        tensors = _present(grad_out, grad_lse, q, window_kv, compressed_kv, sink, indices, offset, out, lse)
        return _OPERATORS[name][1](*tensors, *_present(ratio, window, scale))  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.name = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(f"{ctx.name}: expected at most one derivative, got a request for a second")


class _Attention(torch.autograd.Function):
    # as many arguments as are passed: torch.compile takes a forward of any number of them for one with a context
    generate_vmap_rule = True

    @staticmethod
    def forward(
        name: str,
        q: Tensor,
        window_kv: Tensor,
        compressed_kv: Tensor,
        sink: Tensor,
        indices: Tensor | None,
        offset: Tensor,
        ratio: int | None,
        window: int,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        arguments = _present(q, window_kv, compressed_kv, sink, indices, offset, ratio, window, scale)
        return _OPERATORS[name][0](*arguments)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.name, *tensors = inputs[:7]
        ctx.save_for_backward(*tensors, *output)
        ctx.statics = inputs[7:]

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        inputs = (grad_out, grad_lse, *ctx.saved_tensors)
        wanted = wants_grad(*_present(*inputs))
        backward = _AttentionBackward.apply if wanted else _AttentionBackward.forward
        grads = backward(ctx.name, *inputs, *ctx.statics)
        return (None, *grads, None, None, None, None, None)


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
