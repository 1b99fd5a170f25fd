"""What only Sinkhorn needs."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import lemmata
from lemmata.reference.sinkhorn import sinkhorn, sinkhorn_bwd
from specs_sinkhorn import SINKHORN

INF, NAN = float("inf"), float("nan")


def logits(*special: tuple[int, int, float], seed: int = 0) -> Tensor:
    """Three matrices; the middle one has the special entries."""
    x = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(seed))
    for i, j, value in special:
        x[1, i, j] = value
    return x


def test_gradcheck_of_the_reference() -> None:
    class Closed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, iterations, eps):  # type: ignore[no-untyped-def]
            ctx.save_for_backward(x)
            ctx.statics = iterations, eps
            return sinkhorn(x, iterations, eps)

        @staticmethod
        def backward(ctx, g):  # type: ignore[no-untyped-def]
            return sinkhorn_bwd(g, *ctx.saved_tensors, *ctx.statics), None, None

    for n, iterations, eps in ((4, 20, 1e-6), (2, 1, 1e-3), (5, 3, 1e-6)):
        x = torch.randn(3, n, n, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(Closed.apply, (x, iterations, eps))


def test_the_closed_form_equals_autograd_through_the_reference() -> None:
    x = torch.randn(50, 4, 4, dtype=torch.float64, requires_grad=True)
    g = torch.randn(50, 4, 4, dtype=torch.float64)
    (expected,) = torch.autograd.grad(sinkhorn(x), x, g)
    torch.testing.assert_close(sinkhorn_bwd(g, x.detach()), expected, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(sinkhorn_bwd(g, x.detach(), iterations=19), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "special",
    [[(2, 1, NAN)], [(0, 0, INF)], [(3, 3, INF), (3, 1, -INF)], [(1, j, -INF) for j in range(4)]],
    ids=["nan", "inf", "inf and -inf", "a row of -inf"],
)
def test_special_values_spoil_their_matrix_and_no_other(
    device: torch.device, special: list[tuple[int, int, float]]
) -> None:
    x = logits(*special).to(device)
    clean = lemmata.sinkhorn(logits().to(device))
    leaf = x.clone().requires_grad_()
    out = lemmata.sinkhorn(leaf)
    assert out[1].isnan().all()
    assert torch.equal(out[0], clean[0])
    assert torch.equal(out[2], clean[2])
    out.backward(torch.ones_like(out))
    assert leaf.grad is not None
    assert leaf.grad[1].isnan().all()
    assert leaf.grad[[0, 2]].isfinite().all()


def test_minus_infinity_is_a_softmax_weight_of_zero(device: torch.device) -> None:
    x = logits((2, 1, -INF), (0, 3, -INF)).to(device)
    low = logits((2, 1, -300.0), (0, 3, -300.0)).to(device)
    leaf = x.clone().requires_grad_()
    out = lemmata.sinkhorn(leaf)
    assert torch.equal(out, lemmata.sinkhorn(low))
    out.square().sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()
    assert leaf.grad[1, 2, 1] == 0


def test_nan_in_the_gradient_stays_in_its_matrix(device: torch.device) -> None:
    leaf = logits().to(device).requires_grad_()
    g = torch.ones(3, 4, 4, device=device)
    g[1, 0, 2] = NAN
    lemmata.sinkhorn(leaf).backward(g)
    assert leaf.grad is not None
    assert leaf.grad[1].isnan().all()
    assert leaf.grad[[0, 2]].isfinite().all()


@given(value=st.sampled_from([0.0, -0.0, 80.0, -80.0, 3e38, -3e38]), n=st.integers(2, 8))
def test_equal_logits_give_the_uniform_matrix(device: torch.device, value: float, n: int) -> None:
    out = lemmata.sinkhorn(torch.full((2, n, n), value, device=device))
    torch.testing.assert_close(out, torch.full_like(out, 1 / n), rtol=2e-5, atol=0)


def test_columns_sum_to_one_and_rows_nearly(device: torch.device) -> None:
    out = lemmata.sinkhorn(torch.randn(4096, 4, 4, generator=torch.Generator().manual_seed(3)).to(device))
    assert (out >= 0).all()
    assert (out.sum(-2) - 1).abs().max() < 2e-6
    assert 2e-6 < (out.sum(-1) - 1).abs().max() < 0.02, (
        "rows converge only slowly: sums closer than this were normalised last"
    )


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3, 5)])
def test_leading_shapes(device: torch.device, shape: tuple[int, ...]) -> None:
    flat = SINKHORN.sample(int(np.prod(shape))).to(device)
    (x,) = flat.tensors
    out = lemmata.sinkhorn(x.view(*shape, 4, 4))
    assert out.shape == (*shape, 4, 4)
    assert torch.equal(out.view(x.shape), SINKHORN.run(flat))


@pytest.mark.gpu
def test_offsets_beyond_two_to_the_31() -> None:
    count = 2**27 + 3  # 16 elements each
    x = torch.zeros(count, 4, 4, device="cuda")
    x[-5:] = SINKHORN.sample(5).tensors[0].to("cuda")
    out = lemmata.sinkhorn(x)
    assert torch.equal(out[-5:], lemmata.sinkhorn(x[-5:]))
    assert torch.equal(out[0], lemmata.sinkhorn(x[:1])[0])
    del out
    grad = torch.autograd.grad(lemmata.sinkhorn(x.requires_grad_()), x, torch.ones((), device="cuda").expand(x.shape))[
        0
    ]
    assert torch.equal(grad[0], grad[-6])
    assert grad[-5:].isfinite().all()


@pytest.mark.gpu
def test_the_interpreter_agrees_with_the_compiled_kernel() -> None:
    """What the proofs take a kernel to mean is what the compiled one does: forward and backward, to rounding."""
    interpret = pytest.importorskip("lemmata.proofs.engine.interpreter.interpret").interpret
    kernels = importlib.import_module("lemmata.kernels.sinkhorn")
    call, g = SINKHORN.sample(70, 4.0), SINKHORN.sample(70, seed=1).tensors[0]
    (x,) = call.tensors
    forward, backward = torch.empty_like(x), torch.empty_like(x)
    interpret(kernels.sinkhorn_fwd(kernels.Config()), x, forward)
    interpret(kernels.sinkhorn_bwd(kernels.Config()), g, x, backward)
    out, (grad,) = SINKHORN.grads(lemmata.sinkhorn, call.to("cuda"), g.to("cuda"))
    tolerance, tolerance_bwd = SINKHORN.tolerance("cuda")
    assert (out.cpu() - forward).abs().max() <= tolerance
    assert (grad.cpu() - backward).abs().max() <= tolerance_bwd
    assert (grad.cpu() - backward * 1.001).abs().max() > tolerance_bwd, "a wrong scale would pass"
