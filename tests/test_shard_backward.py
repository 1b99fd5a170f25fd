"""The backward for a shard of the keys: what two shards give is what the whole gives; and what holds of every operator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

import lemmata
from inputs import LAYOUTS, MAGNITUDES, Call, invalid_calls, lay_out
from opspec import OpSpec
from packed_cases import LENGTHS, Case, case
from specs_attention import INF
from specs_csa import CSA
from specs_hca import HCA
from specs_swa import SWA

Named = dict[str, Tensor]
each = pytest.mark.parametrize("spec", [CSA, HCA, SWA], ids=lambda s: s.name)


def shard_bwd(spec: OpSpec, **given: Any) -> tuple[Tensor, ...]:
    """The public function."""
    found: tuple[Tensor, ...] = getattr(lemmata, f"{spec.name}_shard_bwd")(**given)
    return found


def attend(spec: OpSpec, **given: Any) -> tuple[Tensor, Tensor]:
    """The forward."""
    out, lse = getattr(lemmata, spec.name)(**given)
    return out, lse


def named(spec: OpSpec, call: Call) -> tuple[Named, dict[str, Any]]:
    """The tensors of a call by name, and its static parameters."""
    return dict(zip((s.name for s in spec.contract.inputs), call.tensors, strict=True)), call.statics


def upstream(out: Tensor, lse: Tensor, seed: int = 3) -> Named:
    """Gradients of both results; rows without a key have none of their lse."""
    generator = torch.Generator().manual_seed(seed)
    grads = (torch.randn(t.shape, generator=generator).to(t) for t in (out, lse))
    return dict(zip(("grad_out", "grad_lse"), grads, strict=True))


def delta_of(out: Tensor, grad_out: Tensor) -> Tensor:
    return (out.float() * grad_out.float()).sum(-1)


def sample(spec: OpSpec, device: torch.device, magnitude: float = 1.0, at: int = 0) -> tuple[Named, dict[str, Any]]:
    """A call with past tokens enough to be cut within the window; some queries have positions below 0."""
    x, statics = named(spec, spec.sample(magnitude=magnitude, at=at, S=17, P=9).to(device))
    x["offset"] = torch.tensor([7, -4, 12], dtype=torch.int32, device=device)
    return x, statics


def cut(spec: OpSpec, x: Named, statics: dict[str, Any]) -> Iterator[tuple[Named, dict[str, Any]]]:
    """Two shards of the keys: by the indices, or the recent part of the window with all entries, and the rest of it."""
    if spec is CSA:
        half = x["indices"].shape[-1] // 2
        below = torch.full_like(x["offset"], -(2**20))
        yield x | {"indices": x["indices"][..., :half]}, statics
        yield x | {"indices": x["indices"][..., half:], "offset": below}, statics
        return
    recent = 2
    yield x, statics | {"window": recent}
    rest = {"window_kv": x["window_kv"][:, :-recent], "offset": x["offset"] - recent}
    entries = {"compressed_kv": x["compressed_kv"][:, :0]} if spec is HCA else {}
    yield x | rest | entries, statics | {"window": statics["window"] - recent}


def merged(results: Iterable[tuple[Tensor, Tensor]], sink: Tensor) -> tuple[Tensor, Tensor]:
    """Out and lse of all keys from those of shards, without a sink."""
    outs, lses = zip(*((out.float(), torch.where(lse == INF, -INF, lse)) for out, lse in results), strict=True)
    lse = torch.stack(lses).logsumexp(0)
    weights = [torch.where(lse == -INF, 0.0, (own - lse).exp()) for own in lses]
    total = sum((w.unsqueeze(-1) * out for w, out in zip(weights, outs, strict=True)), torch.zeros_like(outs[0]))
    out = ((lse - sink).sigmoid().unsqueeze(-1) * total).bfloat16()
    return out, torch.where(lse == -INF, INF, lse)


def summed(spec: OpSpec, x: Named, statics: dict[str, Any], totals: Named, given: Named, **more: Any) -> list[Tensor]:
    """The gradients of all inputs, from those of both shards; rows of the window that a shard lacks have none there."""
    one, other = (
        shard_bwd(spec, **part, **more_statics, **totals, **given, kv_dtype=torch.float32, **more)
        for part, more_statics in cut(spec, x, statics)
    )
    names = spec.differentiable
    result = []
    for name, a, b in zip(names, one, other, strict=True):
        if name == "sink":
            assert torch.equal(a, b), "the whole one, on each shard"
            result.append(a)
            continue
        missing = a.shape[1] - b.shape[1]
        result.append(a.float() + torch.nn.functional.pad(b.float(), (0, 0, 0, missing) if a.ndim == 3 else (0, 0)))
    return result


@each
@pytest.mark.parametrize("magnitude", MAGNITUDES)
def test_two_shards_are_the_whole(spec: OpSpec, device: torch.device, magnitude: float) -> None:
    x, statics = sample(spec, device, magnitude)
    without_sink = torch.full_like(x["sink"], -INF)
    parts = [attend(spec, **part | {"sink": without_sink}, **more) for part, more in cut(spec, x, statics)]
    out, lse = merged(parts, x["sink"])
    given = upstream(out, torch.where(lse == INF, 0.0, lse))
    totals = {"lse": lse, "delta": delta_of(out, given["grad_out"])}
    assert ((lse == INF) == (attend(spec, **x, **statics)[1] == INF)).all()
    joined = torch.cat([given["grad_out"].float(), given["grad_lse"].unsqueeze(-1)], -1)
    whole = Call(tuple(x.values()), statics)
    tolerance = spec.tolerance(str(device))[1]
    assert spec.error_bwd(whole, joined, summed(spec, x, statics, totals, given)) <= tolerance
    wrong = {
        "the lse of a shard": {"lse": parts[0][1]},
        "an lse with the sink": {"lse": torch.logaddexp(lse, x["sink"])},
        "the Δ of a shard": {"delta": delta_of(parts[0][0], given["grad_out"])},
        "no Δ": {"delta": torch.zeros_like(lse)},
    }
    if magnitude == 1:
        for name, other in wrong.items():
            got = summed(spec, x, statics, totals | other, given)
            assert not spec.error_bwd(whole, joined, got) <= tolerance, name


@each
def test_a_shard_of_all_keys_is_the_backward(spec: OpSpec, device: torch.device) -> None:
    x, statics = sample(spec, device, 2.0, at=2)
    leaves = {name: x[name].clone().requires_grad_() for name in spec.differentiable}
    out, lse = attend(spec, **x | leaves, **statics)
    given = upstream(out, lse)
    wanted = torch.autograd.grad((out, lse), list(leaves.values()), list(given.values()))
    delta = delta_of(out.detach(), given["grad_out"])
    got = shard_bwd(spec, **x, **statics, **given, lse=lse.detach(), delta=delta)
    wide = shard_bwd(spec, **x, **statics, **given, lse=lse.detach(), delta=delta, kv_dtype=torch.float32)
    for name, a, b, c in zip(spec.differentiable, got, wanted, wide, strict=True):
        assert a.dtype is b.dtype
        assert c.dtype is (torch.float32 if name.endswith("_kv") else a.dtype)
        assert torch.equal(c.to(a.dtype), a)
        assert (
            torch.equal(a, b) if device.type == "cpu" else torch.allclose(a.float(), b.float(), rtol=2**-6, atol=1e-2)
        )
    assert any(not torch.equal(a.float(), c) for a, c in zip(got[1:-1], wide[1:-1], strict=True))
    none = shard_bwd(spec, **x, **statics, grad_out=given["grad_out"], grad_lse=None, lse=lse.detach(), delta=delta)
    zeros = given | {"grad_lse": torch.zeros_like(lse)}
    assert equal(none, shard_bwd(spec, **x, **statics, **zeros, lse=lse.detach(), delta=delta))


def equal(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def backward_of(run: Case) -> Case:
    """The case of the backward of packed documents: all keys are here."""
    out, lse = run()
    given = upstream(out, lse)
    before = {"grad_out": given["grad_out"], "grad_lse": given["grad_lse"]}
    return replace(run, tensors=before | run.tensors | {"lse": lse, "delta": delta_of(out, given["grad_out"])})


@each
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_packed_documents(spec: OpSpec, device: torch.device, lengths: Any) -> None:
    run = backward_of(case(spec, lengths).to(device))
    got = shard_bwd(spec, **run.tensors, **run.statics, kv_dtype=torch.float32)
    sink = torch.zeros_like(got[-1])
    parts = [run.parts(name, grad) for name, grad in zip(spec.differentiable[:-1], got[:-1], strict=True)]
    for d, own in enumerate(zip(*parts, strict=True)):
        alone = shard_bwd(spec, **run.document(d).tensors, **run.statics, kv_dtype=torch.float32)
        assert equal(tuple(a[0] for a in alone[:-1]), own)
        sink += alone[-1]
    assert torch.allclose(sink, got[-1], rtol=1e-5, atol=1e-5)
    if len(lengths) > 4:
        later = run.tensors["cu_seqlens"].clone()
        later[5:7] += 1
        other = shard_bwd(spec, **run.tensors | {"cu_seqlens": later}, **run.statics, kv_dtype=torch.float32)
        assert not equal(other[:-1], got[:-1]), "a bound a token late"
        with pytest.raises(
            ValueError, match=f"^{spec.name}_shard_bwd: cu_seqlens: expected 39 as the last bound, got 40$"
        ):
            shard_bwd(spec, **run.tensors | {"cu_seqlens": later.clamp(max=39).add((later == 39).int())}, **run.statics)


def arguments(spec: OpSpec, device: torch.device) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """The tensors of the torch op in their order."""
    x, statics = sample(spec, device)
    out, lse = attend(spec, **x, **statics)
    given = upstream(out, lse)
    return (*given.values(), *x.values(), lse, delta_of(out, given["grad_out"])), statics


def contract(spec: OpSpec) -> Any:
    return getattr(__import__(f"lemmata.reference.{spec.name}", fromlist=["_"]), f"{spec.name.upper()}_SHARD_BWD")


def by_name(spec: OpSpec, tensors: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip((s.name for s in contract(spec).inputs), tensors, strict=True))


@each
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck_and_strides(spec: OpSpec, device: torch.device, layout: str) -> None:
    tensors, statics = arguments(spec, device)
    spread = tuple(lay_out(t, layout) for t in tensors)
    op = getattr(torch.ops.lemmata, f"{spec.name}_shard_bwd").default
    assert equal(op(*spread, *statics.values()), op(*(t.clone() for t in spread), *statics.values()))
    opcheck(op, (*spread, *statics.values()))
    run = backward_of(case(spec).to(device))
    order = [s.name for s in run.contract.inputs]
    flat = ("grad_out", "grad_lse", *order, "lse", "delta")
    packed = getattr(torch.ops.lemmata, f"{spec.name}_shard_packed_bwd").default
    opcheck(packed, (*(run.tensors[name] for name in flat), *run.statics.values()))


@each
def test_compile_vmap_meta_and_flops(spec: OpSpec, device: torch.device) -> None:
    tensors, statics = arguments(spec, device)
    public = getattr(lemmata, f"{spec.name}_shard_bwd")
    wanted = public(**by_name(spec, tensors), **statics)
    torch._dynamo.reset()
    frames = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(public, fullgraph=True, dynamic=True, backend=frames)
    counts = []
    for some in (slice(None), slice(1, None)):
        part = tuple(t if name == "sink" else t[some].clone() for name, t in by_name(spec, tensors).items())
        assert equal(compiled(**by_name(spec, part), **statics), public(**by_name(spec, part), **statics))
        counts.append(frames.frame_count)
    assert counts[0] == counts[-1] > 0, "another size recompiled"

    def of(*given: Tensor) -> Any:
        return public(**by_name(spec, given), **statics)

    pair = tuple(torch.stack([t, t]) for t in tensors)
    assert equal(tuple(r[1] for r in torch.vmap(of)(*pair)), wanted)
    meta = of(*(t.to("meta") for t in tensors))
    assert [(t.shape, t.dtype) for t in meta] == [(t.shape, t.dtype) for t in wanted]
    with torch.autocast(device.type, torch.bfloat16):
        assert equal(of(*tensors), wanted)
    x, _ = sample(spec, device)
    leaves = {name: x[name].requires_grad_() for name in spec.differentiable}
    with FlopCounterMode(display=False) as counted:
        of(*tensors)
    with FlopCounterMode(display=False) as both:
        attend(spec, **x | leaves, **statics)[0].float().sum().backward()  # type: ignore[no-untyped-call]
    assert counted.get_total_flops() * 7 == both.get_total_flops() * 5 > 0


@each
def test_it_has_no_derivative(spec: OpSpec, device: torch.device) -> None:
    tensors, statics = arguments(spec, device)
    asked = tuple(t.clone().requires_grad_(t.is_floating_point()) for t in tensors)
    with pytest.raises(RuntimeError, match="expected at most one derivative, got a request for a second"):
        shard_bwd(spec, **by_name(spec, asked), **statics)[0].float().sum().backward()


@each
def test_bad_input_is_named(spec: OpSpec, device: torch.device) -> None:
    tensors, statics = arguments(spec, torch.device("cpu"))
    seen = 0
    for bad in invalid_calls(contract(spec), Call(tensors, statics), ("scale", "grad_lse")):
        moved = bad.to(device)
        with pytest.raises(bad.error) as caught:
            shard_bwd(spec, **by_name(spec, moved.tensors), **moved.statics)
        message = str(caught.value)
        assert "\n" not in message, bad.label
        assert message.startswith(f"{spec.name}_shard_bwd: {bad.argument}: expected "), (bad.label, message)
        seen += 1
    assert seen > 15
    for wrong in (torch.float16, None, "float32"):
        with pytest.raises(TypeError, match=r"_shard_bwd: kv_dtype: expected torch\.bfloat16 or torch\.float32, got "):
            shard_bwd(spec, **by_name(spec, tensors), **statics, kv_dtype=wrong)
