"""Calls of CSA and HCA by name, and checks of single calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inputs import Call, make
from opspec import OpSpec

INF, NAN = float("inf"), float("nan")
GRADIENTS = ("q", "window_kv", "compressed_kv", "sink")


def case(spec: OpSpec, device: torch.device, seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    """The tensors of a call, by name, without an offset."""
    call = make(spec.contract, spec.configurations[0], spec.sizes | sizes, seed).to(device)
    named = dict(zip((t.name for t in spec.contract.inputs), call.tensors, strict=True))
    del named["offset"]
    return named


def check(spec: OpSpec, call: Call) -> None:
    """The results and the gradients of a call are as near to the oracle as plain torch is."""
    device = str(call.tensors[0].device)
    tolerance, tolerance_bwd = spec.tolerance(device)
    got = spec.run(call)
    with np.errstate(invalid="ignore"):  # a sink of -inf
        assert spec.error(call, got) <= tolerance
    sink = call.tensors[[t.name for t in spec.contract.inputs].index("sink")]
    if got.numel() and sink.isfinite().all():
        g = torch.randn(got.shape, generator=torch.Generator().manual_seed(1)).to(got.device)
        assert spec.error_bwd(call, g, spec.grads(spec.op, call, g)[1]) <= tolerance_bwd


def within_flash_mla(spec: OpSpec, call: Call, got: Tensor) -> bool:
    """Whether results are as near to the oracle as FlashMLA's own tests ask: elements, and all of out by its direction."""
    wanted = torch.tensor(spec.oracle(*(t.double().cpu().numpy() for t in call.tensors), **call.statics))
    (out, lse), (of_out, of_lse) = (x.double().cpu().split([x.shape[-1] - 1, 1], -1) for x in (got, wanted))
    apart = 1 - 2 * (out * of_out).sum() / (out.square() + of_out.square()).sum()
    near = torch.allclose(out, of_out, atol=8e-4, rtol=3.01 / 128)
    return near and bool(apart < 7e-6) and torch.allclose(lse, of_lse, atol=1e-6, rtol=2.01 / 65536)


def planted_is_caught(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    inputs: list[Tensor],
    fixed: dict[str, Any],
) -> None:
    """Gradcheck of the closed form in fp64, which an error of a thousandth in any gradient does not pass.

    Args:
        forward, backward: the reference.
        inputs: those that have a gradient, in their order in ``GRADIENTS``.
        fixed: the other arguments by name.
    """
    factors = [1.0] * 4

    class Closed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *tensors):  # type: ignore[no-untyped-def]
            out, lse = forward(**dict(zip(GRADIENTS, tensors, strict=True)), **fixed)
            ctx.save_for_backward(*tensors, out, lse)
            return out, lse

        @staticmethod
        def backward(ctx, grad_out, grad_lse):  # type: ignore[no-untyped-def]
            *tensors, out, lse = ctx.saved_tensors
            named = dict(zip(GRADIENTS, tensors, strict=True)) | fixed
            grads = backward(grad_out=grad_out, grad_lse=grad_lse, out=out, lse=lse, **named)
            return tuple(g * factor for g, factor in zip(grads, factors, strict=True))

    def finite(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = Closed.apply(*tensors)  # type: ignore[no-untyped-call]
        return out, torch.where(lse.isinf(), 0.0, lse)

    assert torch.autograd.gradcheck(finite, inputs, atol=1e-8, rtol=1e-6)
    for at in range(4):
        factors[:] = [1.001 if i == at else 1.0 for i in range(4)]
        assert not torch.autograd.gradcheck(finite, inputs, atol=1e-8, rtol=1e-6, raise_exception=False)
