"""Packed documents: each has the bits that it has alone, forward and backward, and what holds of a batch holds of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

import lemmata
from inputs import LAYOUTS, Call, invalid_calls, lay_out
from lemmata.bindings import packed as binding
from lemmata.bindings.indexer_ops import packed_topk
from lemmata.bindings.packed import PackedCall
from lemmata.reference import indexer
from opspec import OpSpec
from packed_cases import LENGTHS, Case, Results, case
from specs import SPECS

TOPK = next(s for s in SPECS if s.name == "indexer_topk")
PACKED = [spec for spec in SPECS if "S" in spec.contract.sizes and spec.operator != "compressor"]  # results of tokens
PACKED.append(replace(TOPK, name="indexer_topk_bf16", contract=indexer.SELECT))
every = pytest.mark.parametrize("spec", PACKED, ids=lambda s: s.name)
differentiable = pytest.mark.parametrize("spec", [s for s in PACKED if s.differentiable], ids=lambda s: s.name)


def overload(spec: OpSpec) -> Any:
    """The torch op on packed documents; one for each dtype, where the one on a batch takes both."""
    name = {"indexer_topk": "indexer_topk_fp8", "indexer_topk_bf16": "indexer_topk"}.get(spec.name, spec.name)
    return getattr(torch.ops.lemmata, f"{name}_packed_fwd").default


def equal(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def as_alone(run: Case, results: Results) -> bool:
    """Whether each document has the results that it has alone."""
    own = run.of_documents(results)
    return all(equal([r[0] for r in run.document(d)()], own[d]) for d in range(len(run.lengths)))


def of_the_flat(lengths: Sequence[tuple[int, int]]) -> str:
    return "_".join(f"{tokens}x{entries}" for tokens, entries in lengths) or "none"


@every
@pytest.mark.parametrize("lengths", LENGTHS, ids=of_the_flat)
@pytest.mark.parametrize("at", [0, 2])
def test_each_document_is_as_alone(spec: OpSpec, device: torch.device, lengths: Any, at: int) -> None:
    run = case(spec, lengths, at).to(device)
    results = run()
    assert all(r.is_contiguous() for r in results)
    assert as_alone(run, results)


@every
@given(lengths=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 6)), max_size=7), seed=st.integers(0, 99))
def test_any_documents(spec: OpSpec, device: torch.device, lengths: list[tuple[int, int]], seed: int) -> None:
    run = case(spec, lengths, seed=seed).to(device)
    assert as_alone(run, run())


@differentiable
@pytest.mark.parametrize("lengths", LENGTHS, ids=of_the_flat)
def test_each_gradient_is_as_alone(spec: OpSpec, device: torch.device, lengths: Any) -> None:
    run = case(spec, lengths).to(device)
    given = run.random_like_results()
    grads = run.gradients(given)
    sink = torch.zeros_like(run.tensors["sink"]) if "sink" in grads else None
    parts = {name: run.parts(name, grad) for name, grad in grads.items() if name != "sink"}
    for d, own in enumerate(run.of_documents(given)):
        alone = run.document(d).gradients(tuple(g.unsqueeze(0) for g in own))
        assert all(torch.equal(alone[name][0], part[d]) for name, part in parts.items())
        if sink is not None:
            sink += alone["sink"]
    assert sink is None or torch.allclose(
        sink, grads["sink"], rtol=1e-5, atol=1e-5
    )  # a run of documents is summed at once


@every
def test_planted_errors_are_seen(spec: OpSpec, device: torch.device) -> None:
    run = case(spec).to(device)
    cu = run.tensors["cu_seqlens"].clone()
    cu[5:7] += 1  # the longest document begins there
    wrong: dict[str, dict[str, Tensor]] = {"a bound a token late": {"cu_seqlens": cu}}
    if "cu_entries" in run.tensors:
        wrong["a neighbour's entry"] = {"cu_entries": (run.tensors["cu_entries"] - 1).clamp(min=0)}
        wrong["a neighbour's entry"]["cu_entries"][-1] += 1
    if "ratio" in run.statics:
        wrong["positions that go on"] = {"offset": run.tensors["cu_seqlens"][:-1].to(device)}
    assert as_alone(run, run())
    for name, other in wrong.items():
        assert not as_alone(run, run(**other)), name


@every
def test_documents_of_one_length_are_one_run(spec: OpSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    run = case(spec, LENGTHS[1])
    found = list(binding.runs("op", run.tensors, 20, 12))
    assert [r.sequences for r in found] == [4]
    monkeypatch.setattr(binding, "_MOST", 3)
    assert [r.sequences for r in binding.runs("op", run.tensors, 20, 12)] == [3, 1]
    assert as_alone(run, run())


@every
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck_and_strides(spec: OpSpec, device: torch.device, layout: str) -> None:
    run = case(spec).to(device)
    spread = {n: t if n.startswith("cu_") else lay_out(t, layout) for n, t in run.tensors.items()}
    assert equal(run(**spread), run(**{n: t.clone() for n, t in spread.items()}))
    arguments = (*spread.values(), *run.statics.values())
    fp8 = any(t.dtype is torch.float8_e4m3fn for t in spread.values())  # which test_schema cannot compare
    tests = {"test_utils": ("test_faketensor",)} if fp8 else {}
    opcheck(overload(spec), arguments, **tests)
    whole = case(spec, LENGTHS[2]).to(device)
    opcheck(overload(spec), (*whole.tensors.values(), *whole.statics.values()), **tests)


@every
def test_compile_fullgraph_with_other_documents(spec: OpSpec, device: torch.device) -> None:
    torch._dynamo.reset()
    frames = CompileCounterWithBackend("aot_eager")
    public = getattr(lemmata, spec.contract.op)
    compiled = torch.compile(public, fullgraph=True, dynamic=True, backend=frames)
    more = {"indices": None} if spec.name == "indexer_loss_dense" else {}
    counts = []
    for lengths in (((10, 2), (0, 0), (3, 3)), LENGTHS[1], ((7, 2), (40, 13))):  # sizes that differ from each other
        run = case(spec, lengths).to(device)
        out = compiled(**run.tensors, **run.statics, **more)
        assert equal(out if isinstance(out, tuple) else (out,), run())
        counts.append(frames.frame_count)
    assert counts[0] == counts[-1] > 0, "other documents recompiled"
    with pytest.raises(Exception, match="cu_seqlens: expected 47 as the last bound, got 46"):
        compiled(**run.tensors | {"cu_seqlens": torch.tensor([0, 7, 46], dtype=torch.int32)}, **run.statics, **more)


@differentiable
def test_a_compiled_gradient(spec: OpSpec, device: torch.device) -> None:
    torch._dynamo.reset()
    run = case(spec).to(device)
    given = run.random_like_results()

    def gradients(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return replace(run, tensors=tensors).gradients(given)

    wanted = gradients(run.tensors)
    leaves = {n: run.tensors[n].detach().clone().requires_grad_() for n in spec.differentiable}
    more = {"indices": None} if spec.name == "indexer_loss_dense" else {}
    compiled = torch.compile(getattr(lemmata, spec.contract.op), fullgraph=True, backend="aot_eager")
    out = compiled(**run.tensors | leaves, **run.statics, **more)
    got = torch.autograd.grad(out, list(leaves.values()), given)
    assert equal(got, list(wanted.values()))


@differentiable
def test_a_second_derivative_raises(spec: OpSpec, device: torch.device) -> None:
    run = case(spec).to(device)
    leaves = {n: run.tensors[n].detach().clone().requires_grad_() for n in spec.differentiable}
    total = sum(r.float().clamp(-1e3, 1e3).square().sum() for r in run(**leaves))
    grads = torch.autograd.grad(total, list(leaves.values()), create_graph=True)
    with pytest.raises(RuntimeError, match="expected at most one derivative, got a request for a second"):
        torch.autograd.grad(sum(g.float().sum() for g in grads), next(iter(leaves.values())))


@every
def test_vmap_and_functorch(spec: OpSpec, device: torch.device) -> None:
    pair = [case(spec, seed=seed).to(device) for seed in (0, 1)]
    names = [n for n in pair[0].tensors if not n.startswith("cu_")]

    def of(*tensors: Tensor) -> Results:
        return pair[0](**dict(zip(names, tensors, strict=True)))

    stacked = [torch.stack([c.tensors[n] for c in pair], 1) for n in names]
    for i, results in enumerate(zip(*(r.unbind(0) for r in torch.vmap(of, in_dims=1)(*stacked)), strict=True)):
        assert equal(results, pair[i]())
    for name in spec.differentiable:

        def total(x: Tensor, name: str = name) -> Tensor:
            return sum((r.float().clamp(-1e3, 1e3).sum() for r in pair[0](**{name: x})), torch.zeros((), device=device))

        leaf = pair[0].tensors[name].detach().clone().requires_grad_()
        x = pair[0].tensors[name]
        assert torch.equal(torch.func.grad(total)(x), torch.autograd.grad(total(leaf), leaf)[0])
        with pytest.raises(NotImplementedError, match="no derivative in forward mode"):
            torch.func.jvp(total, (x,), (x,))


@differentiable
def test_autocast_and_deterministic_memory_change_no_bit(spec: OpSpec, device: torch.device) -> None:
    run = case(spec).to(device)
    given = run.random_like_results()
    wanted, wanted_grads = run(), run.gradients(given)
    with torch.autocast(device.type, torch.bfloat16):
        assert equal(run(), wanted)
        assert equal(list(run.gradients(given).values()), list(wanted_grads.values()))
    torch.use_deterministic_algorithms(True)  # fills fresh memory with NaN
    try:
        assert equal(run(), wanted)
        assert equal(list(run.gradients(given).values()), list(wanted_grads.values()))
    finally:
        torch.use_deterministic_algorithms(False)


@every
def test_shapes_without_numbers(spec: OpSpec) -> None:
    run = case(spec)
    wanted = [(r.shape, r.dtype) for r in run()]
    for bounds in ("cpu", "meta"):
        there = {n: t.to(bounds if n.startswith("cu_") else "meta") for n, t in run.tensors.items()}
        assert [(r.shape, r.dtype) for r in run(**there)] == wanted
    with FakeTensorMode() as fake:
        there = {n: fake.from_tensor(t) for n, t in run.tensors.items()}
        assert [(r.shape, r.dtype) for r in run(**there)] == wanted


@every
def test_flops_are_those_of_one_document(spec: OpSpec) -> None:
    def counted(function: Callable[[], object]) -> int:
        with FlopCounterMode(display=False) as counter:
            function()
        return int(counter.get_total_flops())

    whole, run = case(spec, ((23, 11),)), case(spec, ((20, 6), (3, 5)))
    assert counted(run) == counted(whole) == counted(whole.document(0)) > 0


BAD = (  # what is spoiled, and what is said
    ("cu_seqlens", lambda cu: cu + 1, ValueError, "expected 0 as the first bound, got 1"),
    ("cu_seqlens", lambda cu: cu - 1, ValueError, "expected 0 as the first bound, got -1"),
    ("cu_seqlens", lambda cu: cu[[0, 2, 1, 3, 4]], ValueError, "expected bounds that do not fall, got 3 after 8"),
    ("cu_seqlens", lambda cu: cu * 2, ValueError, "expected 19 as the last bound, got 38"),
    ("cu_seqlens", lambda cu: cu[:0], ValueError, "expected shape [documents+1] with documents in"),
    ("cu_seqlens", lambda cu: cu[0], ValueError, "expected shape [documents+1], got []"),
    ("cu_seqlens", lambda cu: cu[None], ValueError, "expected shape [documents+1], got [1, 5]"),
    ("cu_seqlens", lambda cu: cu.long(), TypeError, "expected int32, got int64"),
    ("cu_seqlens", lambda cu: cu.tolist(), TypeError, "expected a tensor for packed documents, got list"),
    ("cu_entries", lambda cu: cu[:-1], ValueError, "expected shape [documents+1], got [4], where documents = 4"),
    ("cu_entries", lambda cu: cu * 2, ValueError, "expected 8 as the last bound, got 16"),
    ("cu_entries", lambda cu: cu - 1, ValueError, "expected 0 as the first bound, got -1"),
    ("cu_entries", lambda cu: cu.flip(0) - 8, ValueError, "expected bounds that do not fall, got -1 after 0"),
    ("cu_entries", lambda cu: cu.float(), TypeError, "expected int32, got float32"),
    ("cu_entries", lambda cu: cu.to("meta"), ValueError, "expected device"),
    ("cu_entries", lambda _: None, TypeError, "expected a tensor for packed documents, got NoneType"),
)


@every
@pytest.mark.parametrize(("name", "spoil", "error", "words"), BAD)
def test_bad_bounds_are_named(
    spec: OpSpec, device: torch.device, name: str, spoil: Any, error: type[Exception], words: str
) -> None:
    run = case(spec, ((3, 1), (5, 2), (9, 4), (2, 1))).to(device)
    if name not in run.tensors:
        return
    with pytest.raises(error) as caught:
        run(**{name: spoil(run.tensors[name])})
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{spec.contract.op}: {name}: expected "), message
    assert words in message


@every
def test_bad_tensors_are_named(spec: OpSpec, device: torch.device) -> None:
    run = case(spec).to(device)
    names = list(run.tensors)
    seen = 0
    for bad in invalid_calls(run.contract, Call(tuple(run.tensors.values()), run.statics), spec.optional):
        if bad.argument in ("cu_seqlens", "cu_entries"):
            continue
        with pytest.raises(bad.error) as caught:
            replace(run, tensors=dict(zip(names, bad.to(device).tensors, strict=True)), statics=bad.statics)()
        message = str(caught.value)
        assert "\n" not in message, bad.label
        assert message.startswith(f"{spec.contract.op}: {bad.argument}: expected "), (bad.label, message)
        seen += 1
    assert seen > 15


def test_entries_have_bounds_where_documents_have(device: torch.device) -> None:
    run = case(next(s for s in PACKED if s.name == "hca")).to(device)
    for missing in ("cu_seqlens", "cu_entries"):
        with pytest.raises(TypeError, match=f"^hca: {missing}: expected a tensor for packed documents, got NoneType$"):
            run(**{missing: None})
    assert equal(run(**{"offset": 0}), run(**{"offset": torch.zeros_like(run.tensors["offset"])}))


def test_the_program_of_the_page() -> None:
    page = (Path(__file__).parent.parent / "docs" / "csa.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    x: dict[str, Any] = {}
    exec(program, x)
    ends, entries = x["bounds"]["cu_seqlens"].tolist(), x["bounds"]["cu_entries"].tolist()
    assert x["indices"].max() > 16, "entries are selected"
    for d in range(3):
        t, e = slice(*ends[d : d + 2]), slice(*entries[d : d + 2])
        alone = lemmata.csa(
            *(a[None] for a in (x["q"][t], x["rows"][t], x["compressed"][e], x["indices"][t])), torch.zeros(8)
        )
        assert equal([a[0] for a in alone], [x["out"][t], x["lse"][t]])


def test_checked_mode(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    run = case(TOPK, ((30, 7), (30, 7), (9, 2), (0, 1), (40, 12))).to(device)
    known = run(offset=5)
    assert equal(known, run(offset=torch.full((5,), 5, dtype=torch.int32, device=device)))
    monkeypatch.setenv("LEMMATA_CHECK", "1")
    assert equal(run(offset=5), known)
    wrong = run.tensors["k"].clone()
    wrong[20], wrong[25] = 0, 1
    other = PackedCall(packed_topk[torch.float8_e4m3fn].packed, lambda q, k, *more: overload(TOPK)(q, wrong, *more))  # type: ignore[arg-type]
    monkeypatch.setitem(packed_topk, torch.float8_e4m3fn, other)
    with pytest.raises(RuntimeError, match=r"indexer_topk of sequence 4 from query 0 on: result: "):
        run(offset=5)


@pytest.mark.gpu
@every
def test_bounds_on_a_gpu_and_in_a_graph(spec: OpSpec) -> None:
    run, other = case(spec).to("cuda"), case(spec, seed=5).to("cuda")
    there = {name: t.cuda() for name, t in run.tensors.items()}
    assert equal(run(**there), run())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
        with pytest.raises(
            ValueError, match=r"cu_seqlens: expected bounds on the CPU in the capture of a CUDA graph, got cuda"
        ):
            run(**there)
    for name, tensor in run.tensors.items():
        tensor.copy_(other.tensors[name])
    graph.replay()
    assert equal(out, other())
