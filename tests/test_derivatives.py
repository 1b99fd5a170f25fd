"""A derivative is the right one or an error, whoever asks for it: never 0 without a word."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from opspec import OpSpec
from specs import DIFFERENTIABLE, SPECS

differentiable = pytest.mark.parametrize("spec", DIFFERENTIABLE, ids=lambda s: s.name)
Loss = Callable[..., Tensor]
Grads = tuple[Tensor, ...]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def asked(spec: OpSpec, device: torch.device) -> tuple[Loss, list[Tensor], Grads]:
    """A scalar of the differentiable inputs, finite where results are not; the inputs; the eager gradient."""
    call = spec.sample(2).to(device)

    def loss(*leaves: Tensor) -> Tensor:
        return spec.run(spec.on(leaves, call)).clamp(-1e3, 1e3).square().sum()

    inputs = spec.inputs_with_gradient(call)
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    return loss, inputs, torch.autograd.grad(loss(*leaves), leaves)


def same(a: Any, b: Any) -> bool:
    return len(a) == len(b) > 0 and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def compiled(f: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(f, backend="aot_eager")  # type: ignore[no-any-return]


@differentiable
def test_torch_func_within_and_around_compile(spec: OpSpec, device: torch.device) -> None:
    loss, inputs, wanted = asked(spec, device)
    every_leaf = tuple(range(len(inputs)))
    assert any(g.abs().max() > 0 for g in wanted)
    assert same(compiled(torch.func.grad(loss, every_leaf))(*inputs), wanted)
    assert same(torch.func.grad(compiled(loss), every_leaf)(*inputs), wanted)
    assert same(torch.func.vjp(loss, *inputs)[1](torch.ones_like(loss(*inputs))), wanted)
    twice = [torch.stack([x, x]) for x in inputs]
    of_each = compiled(torch.vmap(torch.func.grad(loss, every_leaf)))(*twice)
    assert same([g[1] for g in of_each], wanted)


@differentiable
def test_autograd_of_what_torch_func_computes(spec: OpSpec, device: torch.device) -> None:
    loss, inputs, wanted = asked(spec, device)
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = torch.vmap(loss)(*[x.unsqueeze(0) for x in leaves]).sum()
    assert same(torch.autograd.grad(value, leaves), wanted)
    first = torch.func.grad(loss)(*leaves)
    with pytest.raises(RuntimeError, match="at most one derivative"):
        torch.autograd.grad(first.float().sum(), leaves)


NO_ANSWER = r"at most one derivative|no derivative in forward mode"


@differentiable
def test_what_has_no_answer_raises_inside_compile_too(spec: OpSpec, device: torch.device) -> None:
    loss, inputs, _ = asked(spec, device)
    x, rest = inputs[0], inputs[1:]

    def one(x: Tensor) -> Tensor:
        return loss(x, *rest)

    def tangent(x: Tensor) -> Tensor:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(one(forward_ad.make_dual(x, x))).tangent  # type: ignore[no-any-return]

    def jvp(x: Tensor) -> Tensor:
        return torch.func.jvp(one, (x,), (x,))[1]  # type: ignore[no-any-return]

    def second(x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: torch.func.grad(one)(x).float().sum())(x)  # type: ignore[no-any-return]

    def jvp_of_grad(x: Tensor) -> Tensor:
        return torch.func.jvp(torch.func.grad(one), (x,), (x,))[1]  # type: ignore[no-any-return]

    for wrong in (jvp, second, jvp_of_grad, torch.func.jacfwd(one), tangent):
        with pytest.raises((RuntimeError, NotImplementedError), match=NO_ANSWER):
            wrong(x)
    with forward_ad.dual_level(), pytest.raises(Exception, match=NO_ANSWER):
        compiled(lambda x: forward_ad.unpack_dual(one(forward_ad.make_dual(x, x))).tangent)(x)
    for wrong in (jvp, second, tangent):
        with pytest.raises(Exception, match=NO_ANSWER):
            compiled(wrong)(x)


@differentiable
def test_a_tangent_of_any_input_raises(spec: OpSpec, device: torch.device) -> None:
    loss, inputs, _ = asked(spec, device)
    for at, x in enumerate(inputs):
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="no derivative in forward mode"):
            loss(*inputs[:at], forward_ad.make_dual(x, x), *inputs[at + 1 :])


def nothing_kept(ctx: Any, op: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    return CheckpointPolicy.PREFER_RECOMPUTE


def ours_kept(ctx: Any, op: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    ours = "lemmata" in str(op)
    return CheckpointPolicy.MUST_SAVE if ours else CheckpointPolicy.PREFER_RECOMPUTE


CHECKPOINTS: dict[str, dict[str, Any]] = {
    "reentrant": {"use_reentrant": True},
    "not reentrant": {"use_reentrant": False},
    "selective, nothing kept": {
        "use_reentrant": False,
        "context_fn": partial(create_selective_checkpoint_contexts, nothing_kept),
    },
    "selective, ours kept": {
        "use_reentrant": False,
        "context_fn": partial(create_selective_checkpoint_contexts, ours_kept),
    },
}


@differentiable
def test_checkpoints_of_every_kind(spec: OpSpec, device: torch.device) -> None:
    loss, inputs, wanted = asked(spec, device)
    for name, how in CHECKPOINTS.items():
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        checkpoint(loss, *leaves, **how).backward()
        assert same([x.grad for x in leaves], wanted), name
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    recomputed = compiled(lambda *x: checkpoint(loss, *x, use_reentrant=False))
    assert same(torch.autograd.grad(recomputed(*leaves), leaves), wanted)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_an_operator_without_a_derivative_says_so(spec: OpSpec, device: torch.device) -> None:
    call = spec.sample(2).to(device)
    tensors = [t.clone().requires_grad_(t.is_floating_point()) for t in call.tensors]
    if spec.differentiable:
        return
    if spec.updates:
        with pytest.raises(RuntimeError, match="expected no derivative, got a tensor that requires one"):
            spec.direct(*tensors, *call.statics.values())
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="no derivative in forward mode"):
            spec.direct(forward_ad.make_dual(*call.tensors[:1] * 2), *call.tensors[1:], *call.statics.values())
        return
    out = spec.direct(*tensors, *call.statics.values())
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, t) if t.dtype is torch.float32 else t for t in call.tensors]
        if out.dtype.is_floating_point:
            with pytest.raises(NotImplementedError, match="no derivative in forward mode"):
                spec.direct(*duals, *call.statics.values())
        else:
            assert torch.equal(spec.direct(*duals, *call.statics.values()), out)
    if out.dtype.is_floating_point:
        with pytest.raises(RuntimeError, match="expected no derivative, got a request for one"):
            out.sum().backward()
    else:
        assert not out.requires_grad


def test_a_derivative_of_zero_would_be_seen() -> None:
    """The planted error: an operator that autograd knows nothing of, whose derivative under compile is 0."""
    spec = DIFFERENTIABLE[0]
    statics = spec.sample(2).statics.values()
    with torch.library._scoped_library("lemmata_planted", "DEF") as library:
        library.define("zero(Tensor x) -> Tensor")
        library.impl("zero", torch.no_grad()(lambda x: spec.reference(x, *statics)), "CPU")
        library.impl("zero", torch.empty_like, "Meta")
        _, inputs, wanted = asked(spec, torch.device("cpu"))

        def loss(x: Tensor) -> Tensor:
            return torch.ops.lemmata_planted.zero(x).square().sum()  # type: ignore[no-any-return]

        assert not same([compiled(torch.func.grad(loss))(*inputs)], wanted)
