"""What holds of every operator, on the CPU through the reference and on a GPU through the kernel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad
from torch.library import opcheck

from inputs import LAYOUTS, Call, calls, invalid_calls, lay_out
from opspec import SPECS, OpSpec

pytestmark = pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)


def error(spec: OpSpec, got: Tensor, x: Tensor, **statics: float) -> float:
    """The largest deviation from the oracle."""
    assert got.shape == x.shape
    assert got.dtype == x.dtype
    deviation = np.abs(got.detach().cpu().numpy() - spec.oracle(x.detach().cpu().numpy(), **statics))
    return float(deviation.max(initial=0.0))


@given(data=st.data())
def test_values(spec: OpSpec, device: torch.device, data: st.DataObject) -> None:
    call = data.draw(calls(spec.contract, spec.statics, device))
    (x,) = call.tensors
    assert isinstance(x, Tensor)
    tolerance, _ = spec.tolerance(str(device), n=x.shape[-1], **call.statics)
    assert error(spec, spec.op(x, **call.statics), x, **call.statics) <= tolerance


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(spec: OpSpec, device: torch.device, layout: str) -> None:
    x = lay_out(spec.sample(33).to(device), layout)
    tolerance, _ = spec.tolerance(str(device), **spec.configurations[0])
    got = spec.op(x)
    assert got.is_contiguous()
    assert error(spec, got, x) <= tolerance


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3, 5)])
def test_leading_shapes(spec: OpSpec, device: torch.device, shape: tuple[int, ...]) -> None:
    x = spec.sample(int(np.prod(shape))).view(*shape, 4, 4).to(device)
    assert error(spec, spec.op(x), x) <= spec.tolerance(str(device), **spec.configurations[0])[0]


def test_planted_errors_are_seen(spec: OpSpec, device: torch.device) -> None:
    x = spec.sample(256, 4.0).to(device)
    tolerance, _ = spec.tolerance(str(device), **spec.configurations[0])
    assert error(spec, spec.op(x), x) <= tolerance
    for name, wrong in spec.wrong.items():
        assert error(spec, wrong(x), x) > tolerance, name


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("magnitude", [0.1, 1.0, 8.0, 40.0])
def test_gradient(spec: OpSpec, device: torch.device, at: int, magnitude: float) -> None:
    statics = dict(spec.configurations[at])
    _, tolerance = spec.tolerance(str(device), **statics)
    n = int(statics.pop("n"))
    x, g = spec.sample(65, magnitude, n=n).clamp(-80, 80), spec.sample(65, seed=1, n=n)
    leaf = x.to(device, copy=True).requires_grad_()
    spec.op(leaf, **statics).backward(g.to(device))
    assert leaf.grad is not None
    expected = spec.oracle_bwd(g.numpy(), x.numpy(), **statics)
    assert np.abs(leaf.grad.cpu().numpy() - expected).max() <= tolerance
    assert np.abs(leaf.grad.cpu().numpy() * 1.001 - expected).max() > tolerance, "a wrong scale would pass"


def test_gradient_of_a_broadcast_result(spec: OpSpec, device: torch.device) -> None:
    x = spec.sample(5).to(device).requires_grad_()
    spec.op(x).sum().backward()  # the gradient of a sum has stride 0 everywhere
    assert x.grad is not None
    expected = spec.oracle_bwd(np.ones((5, 4, 4)), x.detach().cpu().numpy())
    assert np.abs(x.grad.cpu().numpy() - expected).max() <= spec.tolerance(str(device), **spec.configurations[0])[1]


def test_a_second_derivative_raises(spec: OpSpec, device: torch.device) -> None:
    x = spec.sample(3).to(device).requires_grad_()
    (grad,) = torch.autograd.grad(spec.op(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="expected at most one derivative, got a request for a second"):
        grad.sum().backward()


def test_torch_func_answers_or_raises(spec: OpSpec, device: torch.device) -> None:
    def loss(op: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: op(x).square().sum()

    x = spec.sample(3).to(device)
    torch.testing.assert_close(torch.func.grad(loss(spec.op))(x), torch.func.grad(loss(spec.reference))(x))
    torch.testing.assert_close(torch.vmap(spec.op, in_dims=1)(x.movedim(0, 1)), spec.op(x))
    each = torch.vmap(torch.func.grad(loss(spec.op)))(x)
    torch.testing.assert_close(each, torch.func.grad(loss(spec.reference))(x))
    for wrong in (
        lambda: torch.func.jvp(spec.op, (x,), (x,)),
        lambda: torch.func.jacfwd(spec.op)(x),
        lambda: torch.func.grad(lambda x: torch.func.grad(loss(spec.op))(x).sum())(x),
    ):
        with pytest.raises((RuntimeError, NotImplementedError)):
            wrong()
    with forward_ad.dual_level(), pytest.raises(NotImplementedError):
        spec.op(forward_ad.make_dual(x, x))


@pytest.mark.filterwarnings("ignore:.*autograd kernel was not registered")
def test_the_operator_itself_has_no_gradient(spec: OpSpec, device: torch.device) -> None:
    x = spec.sample(3).to(device).requires_grad_()
    spec.overload(x, 20, 1e-6).sum().backward()
    assert x.grad is None, "a CPU gradient through the reference would hide a missing CUDA one"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(spec: OpSpec, device: torch.device, layout: str) -> None:
    statics = tuple(v for k, v in spec.configurations[0].items() if k != "n")
    opcheck(spec.overload, (lay_out(spec.sample(3).to(device), layout), *statics))
    opcheck(spec.overload, (spec.sample(0).to(device), *statics))


def test_compile_fullgraph_with_dynamic_shapes(spec: OpSpec, device: torch.device) -> None:
    torch._dynamo.reset()
    frames = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(spec.op, fullgraph=True, dynamic=True, backend=frames)
    compilations = []
    for count in (3, 5, 64):
        x = spec.sample(count, seed=count).to(device).requires_grad_()
        y = x.detach().clone().requires_grad_()
        compiled(x).square().sum().backward()
        spec.op(y).square().sum().backward()
        assert x.grad is not None
        assert torch.equal(x.grad, y.grad)
        compilations.append(frames.frame_count)
    assert compilations[0] == compilations[-1] > 0, "another size recompiled"
    with pytest.raises(Exception, match=r"expected shape .*, got"):
        compiled(torch.zeros(3, 4, 5, device=device))


def test_bad_input_is_named(spec: OpSpec, device: torch.device) -> None:
    good = next(iter(spec.configurations))
    call = Call((spec.sample(2),), {k: v for k, v in good.items() if k != "n"})
    seen = 0
    for bad in invalid_calls(spec.contract, call):
        tensors = [t.to(device) if isinstance(t, Tensor) and t.device.type == "cpu" else t for t in bad.tensors]
        with pytest.raises(bad.error or Exception) as caught:
            spec.op(*tensors, **bad.statics)
        message = str(caught.value)
        assert "\n" not in message, bad.label
        assert message.startswith(f"{spec.name}: {bad.argument}: expected "), (bad.label, message)
        assert ", got " in message
        seen += 1
    assert seen > 15


def test_determinism_and_batch_invariance(spec: OpSpec, device: torch.device) -> None:
    x, g = spec.sample(129, 3.0).to(device), spec.sample(129, seed=1).to(device)

    def both(x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        leaf = x.clone().requires_grad_()
        out = spec.op(leaf)
        out.backward(g)
        assert leaf.grad is not None
        return out.detach(), leaf.grad

    out, grad = both(x, g)
    order = torch.randperm(129, generator=torch.Generator().manual_seed(2)).to(device)
    again_out, again_grad = both(x[order], g[order])
    assert torch.equal(again_out, out[order])
    assert torch.equal(again_grad, grad[order])
    for at in (0, 31, 32, 128):
        alone_out, alone_grad = both(x[at : at + 1], g[at : at + 1])
        assert torch.equal(alone_out[0], out[at])
        assert torch.equal(alone_grad[0], grad[at])


def test_every_output_is_written(spec: OpSpec, device: torch.device) -> None:
    torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN
    try:
        x = spec.sample(65).to(device).requires_grad_()
        out = spec.op(x)
        out.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert out.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()
