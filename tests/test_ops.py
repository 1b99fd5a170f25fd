"""What holds of every operator, on the CPU through the reference and on a GPU through the kernel."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad
from torch.library import opcheck

from inputs import LAYOUTS, MAGNITUDES, Call, calls, invalid_calls, lay_out
from opspec import OpSpec
from specs import DIFFERENTIABLE, FUNCTIONAL, SPECS

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch's condition for deterministic matrix products

every = pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
functional = pytest.mark.parametrize("spec", FUNCTIONAL, ids=lambda s: s.name)
differentiable = pytest.mark.parametrize("spec", DIFFERENTIABLE, ids=lambda s: s.name)


def ones(spec: OpSpec, call: Call) -> Tensor:
    """A gradient of the result, of stride 0."""
    out = spec.run(call)
    return torch.ones((), device=out.device).expand(out.shape)


def random_grad(spec: OpSpec, call: Call, seed: int = 1) -> Tensor:
    out = spec.run(call)
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(seed)).to(out.device)


@every
@given(data=st.data())
def test_values(spec: OpSpec, device: torch.device, data: st.DataObject) -> None:
    call = data.draw(calls(spec.contract, spec.statics, spec.exact, spec.edges)).to(device)
    assert spec.error(call, spec.run(call)) <= spec.tolerance_of(call)


@every
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(spec: OpSpec, device: torch.device, layout: str) -> None:
    call = spec.sample(33).to(device).map(lambda t: lay_out(t, layout))
    got = spec.run(call)
    assert got.is_contiguous()
    assert torch.equal(got, spec.run(call.map(torch.clone)))
    assert spec.error(call, got) <= spec.tolerance(str(device))[0]


@every
def test_empty(spec: OpSpec, device: torch.device) -> None:
    for name in spec.contract.sizes:
        call = spec.sample(**{name: 0}).to(device)
        g = ones(spec, call)
        out, grads = spec.grads(spec.op, call, g)
        tolerance, tolerance_bwd = spec.tolerance(str(device)) if out.numel() else (0.0, 0.0)
        assert spec.error(call, out) <= tolerance
        if out.numel() and grads:
            assert spec.error_bwd(call, g, grads) <= tolerance_bwd
        else:
            assert all((g == 0).all() for g in grads)


@every
def test_planted_errors_are_seen(spec: OpSpec, device: torch.device) -> None:
    call = spec.sample(24, 4.0).to(device)
    tolerance, _ = spec.tolerance(str(device))
    assert spec.error(call, spec.run(call)) <= tolerance
    for name, wrong in spec.wrong.items():
        assert spec.error(call, wrong(*call.tensors, **call.statics)) > tolerance, name


@pytest.mark.parametrize(
    ("spec", "at"),
    [pytest.param(s, at, id=f"{at}-{s.name}") for s in DIFFERENTIABLE for at in range(len(s.configurations))],
)
@pytest.mark.parametrize("magnitude", MAGNITUDES)
def test_gradient(spec: OpSpec, device: torch.device, at: int, magnitude: float) -> None:
    call = spec.sample(65, magnitude, at=at).to(device)
    g = random_grad(spec, call)
    tolerance = spec.tolerance_bwd_of(call, g)
    _, grads = spec.grads(spec.op, call, g)
    error = spec.errors_bwd(call, g)
    assert error(grads) <= tolerance
    if magnitude == 1:
        for i in range(len(grads)):
            wrong = [grad * 1.1 if i == j else grad for j, grad in enumerate(grads)]
            assert error(wrong) > tolerance


@differentiable
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_of_any_strides(spec: OpSpec, device: torch.device, layout: str) -> None:
    call = spec.sample(5).to(device)
    g = ones(spec, call)  # the gradient of a sum has stride 0 everywhere
    strided = call.map(lambda t: lay_out(t, layout))
    _, tolerance = spec.tolerance(str(device))
    _, leaves = spec.leaves(strided)
    for leaf, tensor in zip(leaves, spec.inputs_with_gradient(strided), strict=True):
        leaf.data = tensor  # clones are contiguous
    out = spec.run(spec.on(leaves, strided))
    grads = list(torch.autograd.grad(out, leaves, g))
    assert spec.error_bwd(strided, g, grads) <= tolerance


def loss(spec: OpSpec, call: Call) -> Callable[..., Tensor]:
    """A scalar function of the differentiable inputs; finite where the result is -inf."""
    return lambda *leaves: spec.run(spec.on(leaves, call)).clamp(-1e3, 1e3).square().sum()


@differentiable
def test_a_second_derivative_raises(spec: OpSpec, device: torch.device) -> None:
    call, leaves = spec.leaves(spec.sample(3).to(device))
    for leaf in leaves:
        grads = torch.autograd.grad(loss(spec, call)(*leaves), leaves, create_graph=True)
        with pytest.raises(RuntimeError, match="expected at most one derivative, got a request for a second"):
            torch.autograd.grad(sum(g.float().sum() for g in grads), leaf)


@differentiable
def test_torch_func_answers_or_raises(spec: OpSpec, device: torch.device) -> None:
    call = spec.sample(3).to(device)
    leaves = spec.inputs_with_gradient(call)
    ours, every_leaf = loss(spec, call), tuple(range(len(leaves)))
    leaf_call, fresh = spec.leaves(call)
    eager = torch.autograd.grad(loss(spec, leaf_call)(*fresh), fresh)
    for a, b in zip(torch.func.grad(ours, every_leaf)(*leaves), eager, strict=True):
        assert torch.equal(a, b)
    for tangent in every_leaf:

        def of_one(x: Tensor, tangent: int = tangent) -> Tensor:
            return ours(*leaves[:tangent], x, *leaves[tangent + 1 :])

        x = leaves[tangent]
        for wrong in (
            lambda f=of_one, x=x: torch.func.jvp(f, (x,), (x,)),
            lambda f=of_one, x=x: torch.func.jacfwd(f)(x),
            lambda f=of_one, x=x: torch.func.grad(lambda x: torch.func.grad(f)(x).float().sum())(x),
        ):
            with pytest.raises((RuntimeError, NotImplementedError)):
                wrong()
        with forward_ad.dual_level(), pytest.raises(NotImplementedError):
            of_one(forward_ad.make_dual(x, x))


@functional
def test_vmap(spec: OpSpec, device: torch.device) -> None:
    pair = spec.sample(3).to(device), spec.sample(3, seed=5).to(device)
    stacked = [torch.stack(two, 1) for two in zip(*(call.tensors for call in pair), strict=True)]
    statics = pair[0].statics
    got = torch.vmap(lambda *t: spec.op(*t, **statics), in_dims=1)(*stacked)
    assert torch.equal(got, torch.stack([spec.run(call) for call in pair]))
    of_first = torch.vmap(lambda t: spec.op(t, *pair[0].tensors[1:], **statics), in_dims=1)(stacked[0])
    assert torch.equal(of_first[0], got[0])
    if spec.differentiable:
        every_leaf = tuple(range(len(spec.differentiable)))

        def grads(*tensors: Tensor) -> tuple[Tensor, ...]:
            call = Call(tensors, statics)
            return torch.func.grad(loss(spec, call), every_leaf)(*spec.inputs_with_gradient(call))

        of_each = torch.vmap(grads, in_dims=1)(*stacked)
        for i, call in enumerate(pair):
            assert all(torch.equal(a[i], b) for a, b in zip(of_each, grads(*call.tensors), strict=True))


@every
def test_the_operator_itself_has_the_same_gradient(spec: OpSpec, device: torch.device) -> None:
    call = spec.sample(3).to(device).map(lambda t: t.requires_grad_(t.is_floating_point()))
    if spec.updates:
        with pytest.raises(RuntimeError, match="expected no derivative, got a tensor that requires one"):
            spec.direct(*call.tensors, *call.statics.values())
        return
    results = spec.direct(*call.tensors, *call.statics.values())
    results = results if isinstance(results, tuple) else (results,)
    if not results[0].dtype.is_floating_point:
        assert not results[0].requires_grad
        assert torch.equal(spec.run(call), results[0]), "inputs that require a gradient are accepted"
    elif spec.differentiable:
        results = [result for result in results if result.requires_grad]  # not what is kept for the backward alone
        g = [torch.ones_like(result) for result in results]
        grads = torch.autograd.grad(results, spec.inputs_with_gradient(call), g)
        wanted = torch.autograd.grad(spec.run(call), spec.inputs_with_gradient(call), ones(spec, call))
        assert all(torch.equal(a, b) for a, b in zip(grads, wanted, strict=True))
    else:
        with pytest.raises(RuntimeError, match="expected no derivative, got a request for one"):
            results[0].float().sum().backward()


@every
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(spec: OpSpec, device: torch.device, layout: str) -> None:
    empty = [spec.sample(**{name: 0}) for name in spec.contract.sizes] if layout == LAYOUTS[0] else []
    for call in (spec.sample(3).map(lambda t: lay_out(t, layout)), *empty):
        arguments = (*spec.in_place(call).to(device).tensors, *call.statics.values())
        if any(t.dtype is torch.float8_e4m3fn for t in call.tensors):  # which test_schema cannot compare
            neither_mutates_nor_aliases(spec.overload, arguments)
            opcheck(spec.overload, arguments, test_utils=("test_faketensor", "test_aot_dispatch_dynamic"))
        else:
            opcheck(spec.overload, arguments)


def neither_mutates_nor_aliases(overload: Callable[..., Tensor], arguments: tuple[object, ...]) -> None:
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    before = [t.clone() for t in tensors]
    out = overload(*arguments)
    for tensor, copy in zip(tensors, before, strict=True):
        assert torch.equal(tensor.float(), copy.float())
        assert out.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr() or not out.numel()


@every
def test_compile_fullgraph_with_dynamic_shapes(spec: OpSpec, device: torch.device) -> None:
    torch._dynamo.reset()
    frames = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(spec.op, fullgraph=True, dynamic=True, backend=frames)
    compilations = []
    for more in (0, 1, 60):
        sizes = {name: spec.compiled + i + more for i, name in enumerate(spec.contract.sizes)}
        call = spec.sample(**sizes, seed=more).to(device)
        g = ones(spec, call)
        out, grads = spec.grads(compiled, call, g)
        wanted, wanted_grads = spec.grads(spec.op, call, g)
        assert torch.equal(out, wanted)
        assert all(torch.equal(a, b) for a, b in zip(grads, wanted_grads, strict=True))
        compilations.append(frames.frame_count)
    assert compilations[0] == compilations[-1] > 0, "another size recompiled"
    with pytest.raises(Exception, match=r"expected shape .*, got"):
        compiled(*call.tensors[:-1], call.tensors[-1][..., :-1], **call.statics)


@every
def test_bad_input_is_named(spec: OpSpec, device: torch.device) -> None:
    seen = 0
    for bad in invalid_calls(spec.contract, spec.sample(), spec.optional):
        with pytest.raises(bad.error) as caught:
            spec.run(bad.to(device))
        message = str(caught.value)
        assert "\n" not in message, bad.label
        assert message.startswith(f"{spec.contract.op}: {bad.argument}: expected "), (bad.label, message)
        assert ", got " in message
        seen += 1
    assert seen > 15


@every
def test_determinism_and_batch_invariance(spec: OpSpec, device: torch.device) -> None:
    call = spec.sample(129, 3.0).to(device)
    g = random_grad(spec, call)

    def both(at: Tensor) -> list[Tensor]:
        out, grads = spec.grads(spec.op, spec.part(call, at), g[at])
        return [out, *(g for g, name in zip(grads, spec.differentiable, strict=True) if spec.batched[name])]

    everything = both(torch.arange(129, device=device))
    order = torch.randperm(129, generator=torch.Generator().manual_seed(2)).to(device)
    for some in (order, *(torch.tensor([at], device=device) for at in (0, 31, 32, 128))):
        for again, once in zip(both(some), everything, strict=True):
            assert torch.equal(again, once[some])


@every
def test_every_output_is_written(spec: OpSpec, device: torch.device) -> None:
    call = spec.sample(65).to(device)
    g = random_grad(spec, call)
    expected, expected_grads = spec.grads(spec.op, call, g)
    torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN, or the largest integer
    try:
        assert torch.empty(1, device=device).isnan().all()
        out, grads = spec.grads(spec.op, call, g)
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip([out, *grads], [expected, *expected_grads], strict=True):
        assert torch.equal(a, b)
        assert not a.isnan().any()
