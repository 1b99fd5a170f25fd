"""What people do with tensors and modules around an operator: each time the same bits, or one line of error."""

from __future__ import annotations

import copy
import operator
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import lemmata
from inputs import Call
from opspec import OpSpec
from specs import DIFFERENTIABLE, SPECS

every = pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
differentiable = pytest.mark.parametrize("spec", DIFFERENTIABLE, ids=lambda s: s.name)


class Layer(torch.nn.Module):
    """The operator as a module that holds its differentiable inputs."""

    def __init__(self, spec: OpSpec, call: Call) -> None:
        super().__init__()
        self.spec, self.call = spec, call
        held = [torch.nn.Parameter(t.clone()) for t in spec.inputs_with_gradient(call)]
        self.held = torch.nn.ParameterList(held)

    def forward(self) -> Tensor:
        return self.spec.run(self.spec.on(self.held, self.call))


def same(a: Any, b: Any) -> bool:
    return len(a) == len(b) > 0 and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def tensors(results: Any) -> tuple[Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)


def called(spec: OpSpec, call: Call) -> Callable[..., tuple[Tensor, ...]]:
    """The operator as a function of tensors alone."""
    return lambda *t: tensors(spec.direct(*t, *call.statics.values()))


def graded(spec: OpSpec, call: Call) -> tuple[Call, list[Tensor], Tensor, list[Tensor]]:
    """The call on leaves, these, its result and the gradients of its sum."""
    own, leaves = spec.leaves(call)
    out = spec.run(own)
    return own, leaves, out, list(torch.autograd.grad(out, leaves, torch.ones_like(out)))


def operators(graph: torch.fx.Graph) -> set[Any]:
    return {node.target for node in graph.nodes if node.op == "call_function"}


@differentiable
def test_a_copied_or_pickled_module(spec: OpSpec, device: torch.device) -> None:
    layer = Layer(spec, spec.sample(3).to(device))
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(), layer())
    restored = torch.nn.ParameterList(pickle.loads(pickle.dumps(layer.held)))
    layer.held = restored
    assert torch.equal(twin(), layer())


@every
def test_functions_and_operators_are_pickled_by_name(spec: OpSpec) -> None:
    function = getattr(lemmata, spec.contract.op)
    assert pickle.loads(pickle.dumps(function)) is function
    assert copy.deepcopy(function) is function


@every
def test_threads(spec: OpSpec, device: torch.device) -> None:
    call = spec.sample(9).to(device)
    wanted, got = spec.run(call), [torch.empty(0)] * 4

    def work(at: int) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=at % 2 == 0):
            got[at] = spec.run(call)

    threads = [threading.Thread(target=work, args=(at,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same(got, [wanted] * 4)


@differentiable
def test_backward_in_another_thread(spec: OpSpec, device: torch.device) -> None:
    own, leaves, out, wanted = graded(spec, spec.sample(3).to(device))
    thread = threading.Thread(target=spec.run(own).backward, args=(torch.ones_like(out),))
    thread.start()
    thread.join()
    assert same([x.grad for x in leaves], wanted)


@every
@pytest.mark.gpu
def test_a_stream_of_ones_own(spec: OpSpec) -> None:
    call = spec.sample(9).to("cuda")
    wanted = spec.run(call)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = spec.run(call)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(got, wanted)


@every
def test_export(spec: OpSpec, device: torch.device) -> None:
    call = spec.sample(3).to(device)
    statics = tuple(call.statics.values())

    class Calls(torch.nn.Module):
        def forward(self, *t: Tensor) -> Any:
            return spec.direct(*t, *statics)

    program = torch.export.export(Calls(), call.tensors)
    assert spec.overload in operators(program.graph)
    assert same(tensors(program.module()(*call.tensors)), called(spec, call)(*call.tensors))
    program = program.run_decompositions()
    assert same(tensors(program.module()(*call.tensors)), called(spec, call)(*call.tensors))


@every
def test_make_fx_and_functionalize(spec: OpSpec, device: torch.device) -> None:
    call = spec.sample(3).to(device)
    wanted = called(spec, call)(*call.tensors)
    for mode in ("real", "fake", "symbolic"):
        graph = make_fx(called(spec, call), tracing_mode=mode)(*call.tensors)
        assert spec.overload in operators(graph.graph)
        copies = {torch.ops.aten.clone.default} if spec.updates else set()
        assert operators(graph.graph) <= {spec.overload, operator.getitem} | copies
        assert same(graph(*call.tensors), wanted)
    if not spec.updates:  # torch.func takes no operator of others that writes into its arguments
        assert same(torch.func.functionalize(called(spec, call))(*call.tensors), wanted)


@differentiable
def test_make_fx_of_a_training_step(spec: OpSpec, device: torch.device) -> None:
    call = spec.sample(3).to(device)
    _, _, _, wanted = graded(spec, call)

    def step(*leaves: Tensor) -> tuple[Tensor, ...]:
        out = spec.run(spec.on(leaves, call))
        return torch.autograd.grad(out, leaves, torch.ones_like(out))

    leaves = [x.detach().clone().requires_grad_() for x in spec.inputs_with_gradient(call)]
    assert same(make_fx(step)(*leaves)(*leaves), wanted)


@every
def test_meta_and_fake_tensors(spec: OpSpec, device: torch.device) -> None:
    call = spec.sample(3).to(device)
    wanted = spec.run(call)
    on_meta = spec.run(call.map(lambda t: t.to("meta")))
    with FakeTensorMode() as mode:
        fake = spec.run(call.map(mode.from_tensor))
    for got in (on_meta, fake):
        assert (got.shape, got.dtype, got.stride()) == (wanted.shape, wanted.dtype, wanted.stride())


@differentiable
def test_gradients_on_meta_and_of_fakes(spec: OpSpec, device: torch.device) -> None:
    call = spec.sample(3).to(device)
    shapes = [(x.shape, x.dtype) for x in spec.inputs_with_gradient(call)]
    with FakeTensorMode() as mode:
        _, _, _, fake = graded(spec, call.map(mode.from_tensor))
    _, _, _, meta = graded(spec, call.map(lambda t: t.to("meta")))
    assert [(g.shape, g.dtype) for g in fake] == [(g.shape, g.dtype) for g in meta] == shapes


@differentiable
def test_inference_tensors(spec: OpSpec, device: torch.device) -> None:
    call = spec.sample(3).to(device)
    with torch.inference_mode():
        made = call.map(torch.clone)
        assert torch.equal(spec.run(made), spec.run(call))
    assert torch.equal(spec.run(made), spec.run(call))
    if len(spec.differentiable) > 1:
        leaf = spec.inputs_with_gradient(call)[0].detach().clone().requires_grad_()
        mixed = spec.on([leaf, *spec.inputs_with_gradient(made)[1:]], made)
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
            spec.run(mixed)


@differentiable
def test_the_gradient_of_one_input_only(spec: OpSpec, device: torch.device) -> None:
    call = spec.sample(3).to(device)
    _, leaves, _, wanted = graded(spec, call)
    for at, (leaf, grad) in enumerate(zip(leaves, wanted, strict=True)):
        inputs = [x.detach() for x in leaves]
        inputs[at] = leaf.detach().clone().requires_grad_()
        out = spec.run(spec.on(inputs, call))
        assert torch.equal(torch.autograd.grad(out, inputs[at], torch.ones_like(out))[0], grad)


@differentiable
def test_a_graph_kept_used_twice_and_freed(spec: OpSpec, device: torch.device) -> None:
    own, leaves, out, wanted = graded(spec, spec.sample(3).to(device))
    out, g = spec.run(own), torch.ones_like(out)
    assert same(torch.autograd.grad(out, leaves, g, retain_graph=True), wanted)
    assert same(torch.autograd.grad(out, leaves, g), wanted)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(out, leaves, g)
    twice = torch.autograd.grad([spec.run(own), spec.run(own)], leaves, [g, g])
    assert same(twice, [x + x for x in wanted])


@differentiable
def test_an_input_that_changes_before_the_backward_is_noticed(spec: OpSpec, device: torch.device) -> None:
    own, leaves = spec.leaves(spec.sample(3).to(device))
    moved = [x * 1 for x in leaves]
    out = spec.run(spec.on(moved, own))
    with torch.no_grad():
        moved[0].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward(torch.ones_like(out))


@differentiable
def test_hooks_and_saved_tensors(spec: OpSpec, device: torch.device) -> None:
    own, leaves, out, wanted = graded(spec, spec.sample(3).to(device))
    seen: list[Tensor] = []
    with torch.autograd.graph.save_on_cpu():
        out = spec.run(own)
    out.register_hook(seen.append)
    assert same(torch.autograd.grad(out, leaves, torch.ones_like(out)), wanted)
    assert len(seen) == 1


@every
def test_subclasses_of_a_tensor(spec: OpSpec, device: torch.device) -> None:
    class Named(Tensor):
        pass

    call = spec.sample(3).to(device)
    got = spec.run(call.map(lambda t: t.as_subclass(Named)))
    assert torch.equal(got.as_subclass(Tensor), spec.run(call))
    assert torch.equal(spec.run(call.map(lambda t: torch.nn.Parameter(t, requires_grad=False))), spec.run(call))


@every
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_jit_trace(spec: OpSpec, device: torch.device) -> None:
    call = spec.sample(3).to(device)
    traced = torch.jit.trace(called(spec, call), call.tensors, check_trace=False)
    other = spec.sample(3, seed=5).to(device)
    assert same(traced(*other.tensors), called(spec, call)(*other.tensors))


@every
def test_numbers_of_numpy(spec: OpSpec, device: torch.device) -> None:
    call = spec.sample(3).to(device)
    if not call.statics:
        pytest.skip("no parameter is a number")
    wanted = spec.run(call)
    for integer, real in ((np.int64, np.float64), (np.int32, np.float64)):
        statics = {n: (integer if isinstance(v, int) else real)(v) for n, v in call.statics.items()}
        assert torch.equal(spec.op(*call.tensors, **statics), wanted)
    with pytest.raises(TypeError, match=r"expected (int|float), got bool"):
        spec.op(*call.tensors, **call.statics | {next(iter(call.statics)): np.bool_(True)})


@pytest.mark.parametrize("offset", [np.int32(3), np.int64(3), np.array(3)[()]])
def test_an_offset_of_numpy(offset: Any) -> None:
    spec = next(s for s in SPECS if s.name == "swa")
    q, window_kv, sink, _ = spec.sample(2).tensors
    assert same(lemmata.swa(q, window_kv, sink, offset=offset), lemmata.swa(q, window_kv, sink, offset=3))


def test_messages_say_what_to_do_and_both_values() -> None:
    spec = next(s for s in SPECS if s.name == "csa")
    q, window_kv, compressed_kv, indices, sink, _ = spec.sample(2).tensors
    with pytest.raises(TypeError, match=r"^csa: indices: expected int32, got int64; \.int\(\) converts it$"):
        lemmata.csa(q, window_kv, compressed_kv, indices.long(), sink)
    words = r"^csa: compressed_kv: expected shape \[B, T, D\], got \[1, 35, 64\], where B = 2, D = 64$"
    with pytest.raises(ValueError, match=words):
        lemmata.csa(q, window_kv, compressed_kv[:1], indices, sink)


CHECKED: dict[str, Callable[..., Tensor]] = {
    "topk": lambda x: lemmata.topk(x, k=2),
    "indexer_topk": lambda x: lemmata.indexer_topk(
        x.new_ones(1, 3, 8, 32, dtype=torch.bfloat16),
        x.new_ones(1, 5, 32, dtype=torch.bfloat16),
        x.new_ones(1, 3, 8) * x.sum(),
        topk=2,
        ratio=1,
    ),
}


@pytest.mark.parametrize("name", CHECKED)
def test_where_results_cannot_be_checked_one_line_says_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEMMATA_CHECK", "1")
    call, x = CHECKED[name], torch.arange(12.0).view(3, 4)
    call(x)
    begins = f"^{name}: LEMMATA_CHECK=1: expected results that can be read, got "
    with pytest.raises(RuntimeError, match=f"{begins}a tensor on meta: unset it there$"):
        call(x.to("meta"))
    with FakeTensorMode() as mode, pytest.raises(RuntimeError, match=f"{begins}a FakeTensor: unset it there$"):
        call(mode.from_tensor(x))
    with pytest.raises(RuntimeError, match=f"{begins}a call under torch.vmap: unset it there$"):
        torch.vmap(call)(x.unsqueeze(0))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=f"{begins}the capture of a CUDA graph: unset it there$"):
        call(x)


@differentiable
def test_torch_compile_compiles_nothing_inside(spec: OpSpec, device: torch.device) -> None:
    call = spec.sample(2).to(device)
    lines: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        lines.extend(str(node.meta.get("stack_trace", "")) for node in graph.graph.nodes)
        return graph.forward

    torch._dynamo.reset()
    loss = torch.compile(lambda x, *rest: spec.run(spec.on((x, *rest), call)).sum(), backend=backend)
    torch.func.grad(loss)(*spec.inputs_with_gradient(call))
    torch._dynamo.reset()
    assert not any("reference" in line or "chunks" in line for line in lines)


@every
def test_what_is_not_the_same_is_seen(spec: OpSpec, device: torch.device) -> None:
    """The planted error: a result of other inputs, in the comparison that every test here makes."""
    run = called(spec, call := spec.sample(3).to(device))
    assert not same(run(*spec.sample(3, seed=5).to(device).tensors), run(*call.tensors))


MODES: dict[str, dict[str, Any]] = {
    "default": {},
    "dynamic": {"dynamic": True},
    "reduce-overhead": {"mode": "reduce-overhead"},
    "without graphs": {"mode": "max-autotune-no-cudagraphs"},
}
ONE_QUICK = [name if name == "reduce-overhead" else pytest.param(name, marks=pytest.mark.exhaustive) for name in MODES]


@every
@pytest.mark.parametrize("mode", ONE_QUICK)
def test_modes_of_torch_compile(spec: OpSpec, device: torch.device, mode: str) -> None:
    call, other = spec.sample(3).to(device), spec.sample(3, seed=5).to(device)
    torch._dynamo.reset()
    run = torch.compile(called(spec, call), fullgraph=True, **MODES[mode])
    for given in (call, other, call):  # a graph that was captured is replayed on others
        got = [t.clone() for t in run(*given.tensors)]
        assert same(got, called(spec, call)(*given.tensors))
    torch._dynamo.reset()
