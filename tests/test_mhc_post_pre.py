"""What only the way from a layer's result to the next layer's input needs."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import lemmata
from lemmata.reference import mhc
from specs_mhc import MHC_POST_PRE, in_a_row

NAMES = "mhc_post_pre", "mhc_post_pre_backward", "mhc_post", "mhc_pre", "mhc_pre_backward", "sinkhorn"
EPS = 1e-6


def call_of(tokens: int, hc: int, hidden: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Inputs of a call: streams, the layer's result and coefficients, and weights of the next site about 1 in size."""
    generator = torch.Generator().manual_seed(seed)
    rows = hc * (hc + 2)
    shapes = (tokens, hc, hidden), (tokens, hidden), (tokens, hc), (tokens, hc, hc), (rows, hc * hidden), (3,), (rows,)
    x, y, *others = (torch.randn(shape, generator=generator) for shape in (*shapes, (hidden,)))
    post, comb, fn, *rest = others
    return x.bfloat16(), y.bfloat16(), post, comb, fn * (hc * hidden) ** -0.5, *rest


def one_by_one(x: Tensor, y: Tensor, post: Tensor, comb: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """The two operators and the norm, one after the other."""
    *site, norm_weight = weights
    out = lemmata.mhc_post(x, y, post, comb)
    z, *others = lemmata.mhc_pre(out, *site)
    return out, mhc.normed(z, norm_weight, EPS), *others


class Closed(torch.autograd.Function):
    """The reference with its closed form for a derivative."""

    @staticmethod
    def forward(ctx, *tensors):  # type: ignore[no-untyped-def]
        *results, pre = mhc.mhc_post_pre(*tensors)
        ctx.save_for_backward(*tensors, results[0], pre)
        return tuple(results)

    @staticmethod
    def backward(ctx, *grads):  # type: ignore[no-untyped-def]
        return mhc.mhc_post_pre_bwd(*grads, *ctx.saved_tensors)


def test_gradcheck_of_the_reference() -> None:
    for hc in (2, 3):
        tensors = [t.double().requires_grad_() for t in call_of(2, hc, 5)]
        assert torch.autograd.gradcheck(Closed.apply, tensors)


@pytest.mark.parametrize(("hc", "hidden"), [(4, 256), (2, 64), (8, 128)])
def test_it_is_the_two_operators_and_the_norm(device: torch.device, hc: int, hidden: int) -> None:
    """Streams, post and comb bit for bit; the normalised input to the rounding of a norm that is summed in another order."""
    tensors = [t.to(device) for t in call_of(70, hc, hidden)]
    ours, theirs = lemmata.mhc_post_pre(*tensors), one_by_one(*tensors)
    for at in (0, 2, 3):
        assert torch.equal(ours[at], theirs[at])
    torch.testing.assert_close(ours[1], theirs[1], rtol=2.0**-7, atol=1e-4)
    other = lemmata.mhc_post_pre(*tensors[:2], tensors[2] * 1.01, *tensors[3:])
    assert not any(torch.equal(a, b) for a, b in zip(other, theirs, strict=True)), "an error of a hundredth would pass"


@pytest.mark.parametrize("which", range(4))
def test_a_nan_spoils_its_token_and_no_other(device: torch.device, which: int) -> None:
    clean = lemmata.mhc_post_pre(*(t.to(device) for t in call_of(3, 4, 64)))
    tensors = list(call_of(3, 4, 64))
    tensors[which][1].flatten()[5 % tensors[which][1].numel()] = torch.nan
    leaves = [t.to(device).requires_grad_() for t in tensors]
    results = lemmata.mhc_post_pre(*leaves)
    for result, same in zip(results, clean, strict=True):
        assert result[1].isnan().any()
        assert torch.equal(result[[0, 2]], same[[0, 2]])
    grads = torch.autograd.grad(results, leaves[:4], [torch.ones_like(t) for t in results])
    assert all(grad[[0, 2]].isfinite().all() for grad in grads)


@pytest.mark.parametrize("which", range(4))
def test_a_result_that_nobody_reads_has_a_gradient_of_zero(device: torch.device, which: int) -> None:
    """That of each result alone is that of the operators one after the other, to the rounding of what lies between."""
    leaves = [t.to(device).requires_grad_() for t in call_of(5, 4, 64)]
    ours, theirs = (torch.autograd.grad(f(*leaves)[which].float().square().sum(), leaves, allow_unused=True)
                    for f in (lemmata.mhc_post_pre, one_by_one))  # fmt: skip
    for got, want in zip(ours, theirs, strict=True):
        wanted = torch.zeros_like(got) if want is None else want
        assert (got - wanted).norm() <= 2.0**-7 * wanted.norm()


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """The launchers as on a GPU, with every kernel interpreted."""
    run: Any = pytest.importorskip("lemmata.proofs.engine.interpreter.interpret").interpret
    build: Any = importlib.import_module("lemmata.kernels.build")
    modules = [importlib.import_module(f"lemmata.kernels.{name}") for name in NAMES]
    build.forget()
    for module in modules:
        monkeypatch.setattr(module, "build", lambda factory, cfg: functools.partial(run, factory(cfg)))
    yield modules[0], modules[1]
    build.forget()


@pytest.mark.parametrize("at", range(len(MHC_POST_PRE.configurations)))
@pytest.mark.parametrize("tiles", [1, 2])
def test_the_forward_as_on_a_gpu(at: int, tiles: int, interpreted: tuple[Any, Any]) -> None:
    """Both kernels, as exact as the reference; of a few tokens, and of a tile and more where Sinkhorn is short."""
    long = MHC_POST_PRE.configurations[at]["iterations"] > 5
    call = MHC_POST_PRE.sample(2 * tiles - 1 if tiles == 1 or long else 70, at=at, seed=3)
    *results, pre = interpreted[0].forward(*call.tensors, **call.statics)
    out = in_a_row(tuple(results))
    assert MHC_POST_PRE.error(call, out) <= MHC_POST_PRE.tolerance_of(call)
    assert MHC_POST_PRE.error(call, out * 1.02) > MHC_POST_PRE.tolerance_of(call), "a wrong scale would pass"
    torch.testing.assert_close(pre, mhc.mhc_post_pre(*call.tensors, **call.statics)[-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("at", range(len(MHC_POST_PRE.configurations)))
def test_the_backward_as_on_a_gpu(at: int, interpreted: tuple[Any, Any]) -> None:
    """All kernels, as exact as the reference, from what the forward has kept."""
    call = MHC_POST_PRE.sample(5, at=at, seed=3)
    kept = mhc.mhc_post_pre(*call.tensors, **call.statics)
    generator = torch.Generator().manual_seed(5)
    grads = tuple(torch.randn(t.shape, generator=generator).to(t.dtype) for t in kept[:4])
    found = interpreted[1].backward(*grads, *call.tensors, kept[0], kept[4], *call.statics.values())
    tolerance, error = MHC_POST_PRE.tolerance("cpu", at)[1], MHC_POST_PRE.errors_bwd(call, in_a_row(grads))
    assert error(list(found)) <= tolerance
    for which in range(len(found)):
        wrong = [grad * (1.1 if n == which else 1) for n, grad in enumerate(found)]
        assert error(wrong) > tolerance, f"a wrong scale of gradient {which} would pass"


def test_no_tokens_launch_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tilelang")
    for module in (modules := [importlib.import_module(f"lemmata.kernels.{name}") for name in NAMES]):
        monkeypatch.setattr(module, "build", lambda *_: pytest.fail("a kernel for no tokens"))
    tensors = call_of(0, 4, 64)
    *results, pre = modules[0].forward(*tensors, 20, EPS, EPS)
    assert [t.shape for t in (*results, pre)] == [(0, 4, 64), (0, 64), (0, 4), (0, 4, 4), (0, 4)]
    grads = modules[1].backward(*results, *tensors, results[0], pre, 20, EPS, EPS)
    assert [grad.shape for grad in grads] == [t.shape for t in tensors]
    assert not any(grad.any() for grad in grads)


@pytest.mark.gpu
@pytest.mark.parametrize("hidden", [4096, 7168])
def test_gradients_on_a_gpu(hidden: int) -> None:
    """Those of true widths: as near to fp64 as the operators one after the other, and the same at the next call."""
    leaves = [t.cuda().requires_grad_() for t in call_of(300, 4, hidden)]
    grads = [torch.randn_like(t) for t in lemmata.mhc_post_pre(*leaves)]

    def of(run: Any) -> tuple[Tensor, ...]:
        return torch.autograd.grad(run(*leaves), leaves, grads)

    wide = [t.detach().double().requires_grad_() for t in leaves]
    wanted = torch.autograd.grad(mhc.mhc_post_pre(*wide)[:4], wide, [g.double() for g in grads])
    found, again, apart = of(lemmata.mhc_post_pre), of(lemmata.mhc_post_pre), of(one_by_one)
    for got, same, other, want in zip(found, again, apart, wanted, strict=True):
        assert torch.equal(got, same)
        assert (got - want).norm() <= 1.5 * (other - want).norm() + 2.0**-20 * want.norm()
