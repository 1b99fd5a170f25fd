"""``lemmata.sinkhorn``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference import sinkhorn as reference
from .registry import define, wants_grad

_KERNELS = "lemmata.kernels.sinkhorn"


def _fake_fwd(logits: Tensor, iterations: int, eps: float) -> Tensor:
    reference.FORWARD.check(logits, iterations=iterations, eps=eps)
    return logits.new_empty(logits.shape)


def _fake_bwd(grad_out: Tensor, logits: Tensor, iterations: int, eps: float) -> Tensor:
    reference.BACKWARD.check(grad_out, logits, iterations=iterations, eps=eps)
    return logits.new_empty(logits.shape)


_fwd = define(
    "sinkhorn_fwd",
    "(Tensor logits, int iterations, float eps) -> Tensor",
    reference=reference.sinkhorn,
    kernel=(_KERNELS, "forward"),
    fake=_fake_fwd,
)
_bwd = define(
    "sinkhorn_bwd",
    "(Tensor grad_out, Tensor logits, int iterations, float eps) -> Tensor",
    reference=reference.sinkhorn_bwd,
    kernel=(_KERNELS, "backward"),
    fake=_fake_bwd,
)


class _SinkhornBackward(torch.autograd.Function):
    """The gradient as a function of its own, so that asking for its derivative raises, under torch.func too."""

    @staticmethod
    def forward(grad_out: Tensor, logits: Tensor, iterations: int, eps: float) -> Tensor:
        return _bwd(grad_out, logits, iterations, eps)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        raise RuntimeError("sinkhorn: expected at most one derivative, got a request for a second")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        size, dims = info.batch_size, in_dims[:2]
        pair = [
            t.expand(size, *t.shape) if d is None else t.movedim(d, 0) for t, d in zip(inputs[:2], dims, strict=True)
        ]
        return _backward(*pair, *inputs[2:]), 0


class _Sinkhorn(torch.autograd.Function):
    @staticmethod
    def forward(logits: Tensor, iterations: int, eps: float) -> Tensor:
        return _fwd(logits, iterations, eps)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, float], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.statics = inputs[1:]

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, None, None]:
        return _backward(grad_out, *ctx.saved_tensors, *ctx.statics), None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int, None, None], logits: Tensor, iterations: int, eps: float
    ) -> tuple[Tensor, int]:
        return sinkhorn(logits.movedim(in_dims[0], 0), iterations=iterations, eps=eps), 0


def _backward(grad_out: Tensor, logits: Tensor, iterations: int, eps: float) -> Tensor:
    if wants_grad(grad_out, logits):
        return _SinkhornBackward.apply(grad_out, logits, iterations, eps)  # type: ignore[no-any-return, no-untyped-call]
    return _bwd(grad_out, logits, iterations, eps)  # type: ignore[no-any-return]


def sinkhorn(logits: Tensor, *, iterations: int = 20, eps: float = 1e-6) -> Tensor:
    """Sinkhorn normalisation of n x n matrices, as manifold-constrained hyper-connections use it.

    ``C = softmax(logits, -1) + eps``; ``C /= column sums + eps``; then ``iterations - 1`` times ``C /= row sums +
    eps`` and ``C /= column sums + eps``. Columns come last: over the reals every column sums to less than 1, a row to 1
    only as far as the iteration has converged (between 0.92 and 1.08, seen, for logits within 16 of one another).

    Args:
        logits: ``[..., n, n]`` fp32, n from 2 to 8; any strides; the leading dimensions may be empty.
        iterations: column steps, 1 to 100. DeepSeek-V4 uses 20.
        eps: added to the softmax and to every sum, 1e-12 to 1.

    Returns:
        ``[..., n, n]`` fp32, contiguous. Differentiable once. Bitwise deterministic; a matrix does not depend on its
        neighbours.

    A logit of -inf is a softmax weight of 0. A NaN, a +inf, or a row of -inf makes its whole matrix NaN, and no other;
    so does a NaN in the gradient of the result, for the gradient of the logits.

    Raises:
        TypeError: ``logits`` is not an fp32 tensor, or a parameter is not a number.
        ValueError: a shape or a parameter is out of range.

    Formula: arXiv 2512.24880, equation 9, with order and eps of DeepSeek-V4's released inference code.
    """
    if not torch.compiler.is_compiling():  # there, the fakes check
        reference.FORWARD.check(logits, iterations=iterations, eps=eps)
    if wants_grad(logits):
        return _Sinkhorn.apply(logits, iterations, eps)  # type: ignore[no-any-return, no-untyped-call]
    return _fwd(logits, iterations, eps)  # type: ignore[no-any-return]
