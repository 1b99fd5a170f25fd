"""Sinkhorn normalisation: the mixing matrices of manifold-constrained hyper-connections (arXiv 2512.24880, equation 9).

Order and eps are those of DeepSeek-V4's released inference code. For logits Λ [..., n, n]:

    C = softmax(Λ, -1) + eps
    C = C / (column sums + eps)
    repeat iterations - 1 times:  C = C / (row sums + eps);  C = C / (column sums + eps)

Columns come last: their sums are s / (s + eps) < 1; rows sum to 1 only as far as the iteration has converged.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .contract import Contract, Size, Static, TensorSpec

ROW, COLUMN = -1, -2  # the axis that a row sum, a column sum runs along

_SIZES = {"count": Size(high=2**31 - 256)}
_STATICS = {
    "n": Static(int, 2, 8),
    "iterations": Static(int, 1, 100),
    "eps": Static(float, 1e-12, 1.0),
}


def _matrices(name: str) -> TensorSpec:
    return TensorSpec(name, "*count n n", (torch.float32,))


_PROBES = ({"count": 1009}, {"count": 2**31 - 256})
FORWARD = Contract("sinkhorn", _SIZES, _STATICS, (_matrices("logits"),), (_matrices("out"),), _PROBES)
BACKWARD = Contract(
    "sinkhorn_bwd",
    _SIZES,
    _STATICS,
    (_matrices("grad_out"), _matrices("logits")),
    (_matrices("grad_logits"),),
    _PROBES,
)


def _axes(iterations: int) -> list[int]:
    """Return the axes summed along by the successive divisions: a column, then row and column in turn."""
    return [COLUMN] + [ROW, COLUMN] * (iterations - 1)


def _divide(x: Tensor, axis: int, eps: float) -> Tensor:
    return x / (x.sum(axis, keepdim=True) + eps)


def sinkhorn(logits: Tensor, iterations: int = 20, eps: float = 1e-6) -> Tensor:
    """Normalise each n x n matrix; the formula of this module's docstring."""
    x = logits.softmax(ROW) + eps
    for axis in _axes(iterations):
        x = _divide(x, axis, eps)
    return x


def sinkhorn_bwd(grad_out: Tensor, logits: Tensor, iterations: int = 20, eps: float = 1e-6) -> Tensor:
    """Return the gradient of the logits, in closed form.

    For y = x / (s + eps) with s the sum along an axis: dx = (dy - sum(dy · y)) / (s + eps), since x / (s + eps) = y.
    The divisions are undone in reverse; softmax p, to which eps was added, gives dΛ = p · (dp - sum(dp · p)).
    """
    p = logits.softmax(ROW)
    x, steps = p + eps, []
    for axis in _axes(iterations):
        scale = x.sum(axis, keepdim=True) + eps
        x = x / scale
        steps.append((axis, x, scale))
    grad = grad_out
    for axis, y, scale in reversed(steps):
        grad = (grad - (grad * y).sum(axis, keepdim=True)) / scale
    return p * (grad - (grad * p).sum(ROW, keepdim=True))
