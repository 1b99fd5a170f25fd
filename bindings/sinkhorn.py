"""``lemmata.sinkhorn``."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ..models import Model
from ..operators import Kernel
from ..reference import sinkhorn as reference
from . import flops
from .registry import check, define, plain, short
from .vmap import leading

_KERNELS = "lemmata.kernels.sinkhorn"


def _fake_fwd(logits: Tensor, iterations: int, eps: float) -> Tensor:
    reference.FORWARD.check(logits, iterations=iterations, eps=eps)
    return logits.new_empty(logits.shape)


def _fake_bwd(grad_out: Tensor, logits: Tensor, iterations: int, eps: float) -> Tensor:
    reference.BACKWARD.check(grad_out, logits, iterations=iterations, eps=eps)
    return logits.new_empty(logits.shape)


_bwd = define(
    "sinkhorn_bwd",
    "(Tensor grad_out, Tensor logits, int iterations, float eps) -> (Tensor grad_logits)",
    reference=reference.sinkhorn_bwd,
    kernel=(_KERNELS, "backward"),
    fake=_fake_bwd,
    vmap=leading,
    flops=flops.sinkhorn_bwd,
    shards="leading",
)
_fwd = define(
    "sinkhorn_fwd",
    "(Tensor logits, int iterations, float eps) -> (Tensor out)",
    reference=reference.sinkhorn,
    kernel=(_KERNELS, "forward"),
    fake=_fake_fwd,
    vmap=leading,
    gradient=_bwd,
    flops=flops.sinkhorn,
    shards="leading",
)
_call = short(_fwd)


def shipped(model: Model) -> Iterator[Kernel]:
    """Yield the kernels that a model launches, each with its config."""
    from ..kernels.sinkhorn import Config, sinkhorn_bwd, sinkhorn_fwd

    config = Config(model.streams, model.iterations, model.eps)
    yield sinkhorn_fwd, config
    yield sinkhorn_bwd, config


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
    iterations, eps = plain(iterations), plain(eps)
    check(reference.FORWARD, logits, iterations=iterations, eps=eps)
    return _call(logits, iterations, eps)  # type: ignore[no-any-return]
