"""One record per operator; the generic tests in test_ops.py run over all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

import lemmata
from lemmata.reference import sinkhorn
from lemmata.reference.contract import Contract

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class OpSpec:
    """What the generic tests need to know of an operator.

    Attributes:
        op: the public function.
        overload: the torch operator that a forward call dispatches.
        contract: its contract.
        statics: draws static parameters, those that are dimensions included.
        configurations: a few of them, for tests that compile something for each.
        reference: plain torch in the dtype of its input; its own error against the oracle sets the tolerance.
        oracle: the formula again, written independently, in fp64.
        oracle_bwd: the derivative of the oracle times grad_out, found without the closed form.
        wrong: the reference with an error planted, by name: every test of values must reject each.
    """

    name: str
    op: Callable[..., Tensor]
    overload: Callable[..., Tensor]
    contract: Contract
    statics: st.SearchStrategy[dict[str, float]]
    configurations: tuple[dict[str, float], ...]
    reference: Callable[..., Tensor]
    oracle: Callable[..., Array]
    oracle_bwd: Callable[..., Array]
    wrong: dict[str, Callable[..., Tensor]]

    def sample(self, count: int, magnitude: float = 1.0, seed: int = 0, n: int = 4) -> Tensor:
        """Random inputs."""
        return torch.randn(count, n, n, generator=torch.Generator().manual_seed(seed)) * magnitude

    @functools.cache  # noqa: B019  specs live as long as the tests
    def tolerance(self, device: str, **statics: float) -> tuple[float, float]:
        """Twice plain torch's own largest error, forward and backward, over all magnitudes that are drawn."""
        n = int(statics.pop("n"))
        x = torch.cat([self.sample(512, m, seed=7, n=n).clamp(-80, 80) for m in (0.1, 1.0, 8.0, 40.0)])
        g = self.sample(len(x), seed=8, n=n)
        on_device = x.to(device, copy=True).requires_grad_()
        out = self.reference(on_device, **statics)
        out.backward(g.to(device))
        assert on_device.grad is not None
        forward = np.abs(out.detach().cpu().numpy() - self.oracle(x.detach().numpy(), **statics)).max()
        backward = np.abs(on_device.grad.cpu().numpy() - self.oracle_bwd(g.numpy(), x.numpy(), **statics)).max()
        return 2 * float(forward), 2 * float(backward)


def _sinkhorn_oracle(x: NDArray, iterations: int = 20, eps: float = 1e-6) -> NDArray:
    """Sums as products with a vector of ones, in whatever precision x brings (complex for the derivative)."""
    x = x.astype(np.result_type(x, np.float64))
    ones = np.ones(x.shape[-1])
    e = np.exp(x - x.real.max(-1, keepdims=True))
    c = e / (e @ ones)[..., None] + eps
    for step in range(2 * iterations - 1):
        sums = (ones @ c)[..., None, :] if step % 2 == 0 else (c @ ones)[..., :, None]
        c = c / (sums + eps)
    return c


def _sinkhorn_oracle_bwd(g: NDArray, x: NDArray, iterations: int = 20, eps: float = 1e-6) -> Array:
    """Complex step: the derivative in direction E is Im f(x + ihE) / h, exact to rounding for so small an h."""
    n, h = x.shape[-1], 1e-30
    grad = np.empty(x.shape, np.float64)
    for a in range(n):
        for b in range(n):
            moved = x.astype(np.complex128)
            moved[..., a, b] += 1j * h
            grad[..., a, b] = (g * _sinkhorn_oracle(moved, iterations, eps).imag / h).sum((-1, -2))
    return grad


def _rows_last(x: Tensor, iterations: int = 20, eps: float = 1e-6) -> Tensor:
    return sinkhorn.sinkhorn(x.mT, iterations, eps).mT


def _no_eps_in_sums(x: Tensor, iterations: int = 20, eps: float = 1e-6) -> Tensor:
    c = x.softmax(-1) + eps
    for step in range(2 * iterations - 1):
        c = c / c.sum(-2 if step % 2 == 0 else -1, keepdim=True)
    return c


SINKHORN = OpSpec(
    name="sinkhorn",
    op=lemmata.sinkhorn,
    overload=torch.ops.lemmata.sinkhorn_fwd.default,
    contract=sinkhorn.FORWARD,
    statics=st.fixed_dictionaries(
        {
            "n": st.sampled_from((4, 4, 2, 3, 5, 6, 7, 8)),
            "iterations": st.sampled_from((20, 20, 1, 2)),
            "eps": st.sampled_from((1e-6, 1e-6, 1e-3)),
        }
    ),
    configurations=(
        {"n": 4, "iterations": 20, "eps": 1e-6},
        {"n": 3, "iterations": 1, "eps": 1e-6},
        {"n": 8, "iterations": 20, "eps": 1e-6},
        {"n": 5, "iterations": 2, "eps": 1e-3},
        {"n": 7, "iterations": 20, "eps": 1e-6},
        {"n": 2, "iterations": 100, "eps": 1e-6},
    ),
    reference=sinkhorn.sinkhorn,
    oracle=_sinkhorn_oracle,
    oracle_bwd=_sinkhorn_oracle_bwd,
    wrong={
        "rows last": _rows_last,
        "no eps in the sums": _no_eps_in_sums,
        "one step short": lambda x, iterations=20, eps=1e-6: sinkhorn.sinkhorn(x, max(iterations - 1, 1), eps),
        "transposed": lambda x, iterations=20, eps=1e-6: sinkhorn.sinkhorn(x, iterations, eps).mT,
    },
)

SPECS = (SINKHORN,)
