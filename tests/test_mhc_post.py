"""What only the streams after a layer need."""

from __future__ import annotations

import importlib
import re
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

import lemmata
from lemmata.operators import OPERATORS
from lemmata.reference.mhc import mhc_post, mhc_post_bwd
from specs_mhc import MHC_POST

KERNELS: Any = importlib.import_module("lemmata.kernels.mhc_post")
INF, NAN = float("inf"), float("nan")


def call_of(tokens: int, hc: int, hidden: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Inputs of a call: the streams, the layer's result and the coefficients."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (tokens, hc, hidden), (tokens, hidden), (tokens, hc), (tokens, hc, hc)
    x, y, post, comb = (torch.randn(shape, generator=generator) for shape in shapes)
    return x.bfloat16(), y.bfloat16(), post, comb


class Closed(torch.autograd.Function):
    """The reference with its closed form for a derivative."""

    @staticmethod
    def forward(ctx, *tensors):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*tensors)
        return mhc_post(*tensors)

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        return mhc_post_bwd(g, *ctx.saved_tensors)


def test_gradcheck_of_the_reference() -> None:
    for hc in (2, 3, 4):
        tensors = [t.double().requires_grad_() for t in call_of(2, hc, 5)]
        assert torch.autograd.gradcheck(Closed.apply, tensors)


def test_one_stream_is_a_residual_connection(device: torch.device) -> None:
    """With post of 1 for a stream and comb of 1 from itself, the result is added to it, and the other is as before."""
    x, y, post, comb = (t.to(device) for t in call_of(3, 2, 64))
    post[:] = torch.tensor([1.0, 0.0])
    comb[:] = torch.eye(2)
    out = lemmata.mhc_post(x, y, post, comb)
    assert torch.equal(out[:, 0], (x[:, 0].float() + y.float()).bfloat16())
    assert torch.equal(out[:, 1], x[:, 1])


def test_the_first_index_of_comb_is_the_stream_that_is_read(device: torch.device) -> None:
    x, y, post, comb = (t.to(device) for t in call_of(3, 4, 64))
    comb[:] = 0
    comb[:, 1, 2] = 1
    out = lemmata.mhc_post(x, y, torch.zeros_like(post), comb)
    assert torch.equal(out[:, 2], x[:, 1])
    assert not out[:, [0, 1, 3]].any()


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("value", [NAN, INF])
def test_special_values_spoil_their_token_and_no_other(device: torch.device, which: int, value: float) -> None:
    clean = lemmata.mhc_post(*(t.to(device) for t in call_of(3, 4, 64)))
    tensors = list(call_of(3, 4, 64))
    tensors[which][1].flatten()[5 % tensors[which][1].numel()] = value
    leaves = [t.to(device).requires_grad_() for t in tensors]
    out = lemmata.mhc_post(*leaves)
    assert not out[1].isfinite().all()
    assert torch.equal(out[[0, 2]], clean[[0, 2]])
    grads = torch.autograd.grad(out, leaves, torch.ones_like(out))
    assert all(grad[[0, 2]].isfinite().all() for grad in grads)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3, 5)])
def test_leading_shapes(device: torch.device, shape: tuple[int, ...]) -> None:
    flat = tuple(t.to(device) for t in call_of(int(torch.tensor(shape).prod()), 4, 64))
    out = lemmata.mhc_post(*(t.view(*shape, *t.shape[1:]) for t in flat))
    assert out.shape == (*shape, 4, 64)
    assert torch.equal(out.view(flat[0].shape), lemmata.mhc_post(*flat))


@pytest.mark.parametrize(("hc", "hidden"), [(4, 1088), (4, 64), (3, 128), (8, 576)])
def test_the_launchers_with_interpreted_kernels(hc: int, hidden: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kernels as on a GPU, of a step, of several, of one that ends within, to the rounding of their results."""
    run: Any = pytest.importorskip("lemmata.proofs.engine.interpreter.interpret").interpret
    monkeypatch.setattr(KERNELS, "build", lambda factory, cfg: lambda *tensors: run(factory(cfg), *tensors))
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    tensors = call_of(2, hc, hidden)
    grad = call_of(2, hc, hidden, seed=1)[0]
    wide = [t.double() for t in tensors]
    got = KERNELS.forward(*tensors), *KERNELS.backward(grad, *tensors)
    wanted = mhc_post(*wide), *mhc_post_bwd(grad.double(), *wide)
    for found, want in zip(got, wanted, strict=True):
        tolerance = 2.0**-8 if found.dtype == torch.bfloat16 else 2.0**-20
        assert found.shape == want.shape
        assert (found - want).abs().max() <= tolerance * want.abs().max()
        assert (found * 1.02 - want).abs().max() > tolerance * want.abs().max(), "a wrong scale would pass"


ONCE = {
    "mhc_post_fwd": {"x", "y", "out"},
    "mhc_post_bwd": {"grad_out", "x", "y", "grad_x", "grad_y"},
    "mhc_weigh": {"x", "y"},
}
"""What each kernel reads or writes of the streams and of rows as wide."""


def test_every_access_to_streams_happens_once_and_is_of_all_columns_of_a_thread() -> None:
    """16 bytes of 8 columns, 8 of 4 in the backward of what comes after a layer."""
    cuda_source = pytest.importorskip("lemmata.bench.resources").cuda_source
    from lemmata.kernels.build import PASS_CONFIGS

    for factory, config in (kernel for kernel in OPERATORS["mhc"].shipped() if kernel[0].__name__ in ONCE):
        vector = "uint2" if factory.__name__ == "mhc_post_bwd" else "uint4"
        text = cuda_source(factory(config), PASS_CONFIGS)
        for name in ONCE[factory.__name__]:
            every, wide = (
                len(re.findall(rf"{start}\({name} \+ ", text)) for start in (r"\*\(\w+\*\)", rf"\*\({vector}\*\)")
            )
            assert (every, wide) == (1, 1), (factory.__name__, name)


@pytest.mark.gpu
def test_offsets_beyond_two_to_the_31() -> None:
    tokens = 2**17 + 3  # 16384 elements each
    x, y, post, comb = (t.to("cuda") for t in call_of(5, 4, 4096))
    wide = [t.new_zeros((tokens, *t.shape[1:])) for t in (x, y, post, comb)]
    for long, short in zip(wide, (x, y, post, comb), strict=True):
        long[-5:] = short
    out = lemmata.mhc_post(*wide)
    assert torch.equal(out[-5:], lemmata.mhc_post(x, y, post, comb))
    assert not out[:-5].any()


@pytest.mark.gpu
def test_the_interpreter_agrees_with_the_compiled_kernels() -> None:
    """What the proofs take the kernels to mean is what the compiled ones do: forward and backward, to rounding."""
    interpret = pytest.importorskip("lemmata.proofs.engine.interpreter.interpret").interpret
    call = MHC_POST.sample(20, at=1)
    grad = MHC_POST.sample(20, seed=1, at=1).tensors[0]
    cfg = KERNELS.Config(*call.dims.values())
    out, grads = torch.empty_like(grad), [torch.empty_like(t) for t in call.tensors]
    interpret(KERNELS.mhc_post_fwd(cfg), *call.tensors, out)
    interpret(KERNELS.mhc_post_bwd(cfg), grad, *call.tensors, *grads)
    found = MHC_POST.grads(lemmata.mhc_post, call.to("cuda"), grad.to("cuda"))
    for ours, theirs in zip((out, *grads), (found[0], *found[1]), strict=True):
        tolerance = 2.0**-8 if ours.dtype == torch.bfloat16 else 2.0**-20
        assert (ours - theirs.cpu()).abs().max() <= tolerance * ours.abs().max()
