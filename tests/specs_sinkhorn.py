"""Sinkhorn's record: oracles, planted errors."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import lemmata
from lemmata.reference import sinkhorn
from opspec import Array, OpSpec


def oracle(x: NDArray, iterations: int = 20, eps: float = 1e-6) -> NDArray:
    """Sums as products with a vector of ones, in whatever precision x brings (complex for the derivative)."""
    x = x.astype(np.result_type(x, np.float64))
    ones = np.ones(x.shape[-1])
    e = np.exp(x - x.real.max(-1, keepdims=True))
    c = e / (e @ ones)[..., None] + eps
    for step in range(2 * iterations - 1):
        sums = (ones @ c)[..., None, :] if step % 2 == 0 else (c @ ones)[..., :, None]
        c = c / (sums + eps)
    return c


def oracle_bwd(g: Array, x: Array, iterations: int = 20, eps: float = 1e-6) -> tuple[Array]:
    """Complex step: the derivative in direction E is Im f(x + ihE) / h, exact to rounding for so small an h."""
    n, h = x.shape[-1], 1e-30
    grad = np.empty(x.shape, np.float64)
    for a in range(n):
        for b in range(n):
            moved = x.astype(np.complex128)
            moved[..., a, b] += 1j * h
            grad[..., a, b] = (g * oracle(moved, iterations, eps).imag / h).sum((-1, -2))
    return (grad,)


def _rows_last(x: Tensor, iterations: int = 20, eps: float = 1e-6) -> Tensor:
    return sinkhorn.sinkhorn(x.mT, iterations, eps).mT


def _no_eps_in_sums(x: Tensor, iterations: int = 20, eps: float = 1e-6) -> Tensor:
    c = x.softmax(-1) + eps
    for step in range(2 * iterations - 1):
        c = c / c.sum(-2 if step % 2 == 0 else -1, keepdim=True)
    return c


SINKHORN = OpSpec(
    name="sinkhorn",
    operator="sinkhorn",
    op=lemmata.sinkhorn,
    overload=torch.ops.lemmata.sinkhorn_fwd.default,
    contract=sinkhorn.FORWARD,
    sizes={"count": 512},
    large={"count": 4099},
    batch="count",
    configurations=(
        {"n": 4, "iterations": 20, "eps": 1e-6},
        {"n": 3, "iterations": 1, "eps": 1e-6},
        {"n": 8, "iterations": 20, "eps": 1e-6},
        {"n": 5, "iterations": 2, "eps": 1e-3},
        {"n": 7, "iterations": 20, "eps": 1e-6},
        {"n": 2, "iterations": 100, "eps": 1e-6},
        {"n": 6, "iterations": 20, "eps": 1e-3},
    ),
    reference=sinkhorn.sinkhorn,
    oracle=oracle,
    wrong={
        "rows last": _rows_last,
        "no eps in the sums": _no_eps_in_sums,
        "one step short": lambda x, iterations=20, eps=1e-6: sinkhorn.sinkhorn(x, max(iterations - 1, 1), eps),
        "transposed": lambda x, iterations=20, eps=1e-6: sinkhorn.sinkhorn(x, iterations, eps).mT,
    },
    differentiable=("logits",),
    oracle_bwd=oracle_bwd,
)

SPECS = (SINKHORN,)
