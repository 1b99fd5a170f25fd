"""What only a GPU shows. Run with `pytest -m gpu`; the verdicts go into the record."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys

import pytest
import torch

from opspec import SPECS, OpSpec

pytestmark = [pytest.mark.gpu, pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)]

CUDA = torch.device("cuda")


def test_a_thousand_repetitions_are_bitwise_equal(spec: OpSpec) -> None:
    x, g = spec.sample(4099, 4.0).to(CUDA).requires_grad_(), spec.sample(4099, seed=1).to(CUDA)
    out = spec.op(x)
    (grad,) = torch.autograd.grad(out, x, g)
    for _ in range(1000):
        again = spec.op(x)
        (again_grad,) = torch.autograd.grad(again, x, g)
        assert torch.equal(again, out)
        assert torch.equal(again_grad, grad)


def test_a_cuda_graph_replays_on_new_values(spec: OpSpec) -> None:
    x = spec.sample(100).to(CUDA)
    spec.op(x)  # compiles: nothing may compile during a capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = spec.op(x)
    x.copy_(spec.sample(100, seed=5))
    graph.replay()
    assert torch.equal(out, spec.op(x))
    assert not torch.equal(out, spec.op(spec.sample(100).to(CUDA)))


def test_the_current_stream_is_used(spec: OpSpec) -> None:
    x, late = torch.zeros(100, 4, 4, device=CUDA), spec.sample(100).to(CUDA)
    expected = spec.op(late)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # a tenth of a second: a launch on another stream would read zeros
        x.copy_(late)
        out = spec.op(x)
    stream.synchronize()
    assert torch.equal(out, expected)


def test_offsets_beyond_two_to_the_31(spec: OpSpec) -> None:
    count = 2**27 + 3  # 16 elements each
    x = torch.zeros(count, 4, 4, device=CUDA)
    x[-5:] = spec.sample(5).to(CUDA)
    out = spec.op(x)
    assert torch.equal(out[-5:], spec.op(x[-5:]))
    assert torch.equal(out[0], spec.op(x[:1])[0])
    del out
    grad = torch.autograd.grad(spec.op(x.requires_grad_()), x, torch.ones((), device=CUDA).expand(x.shape))[0]
    assert torch.equal(grad[0], grad[-6])
    assert grad[-5:].isfinite().all()


def test_the_device_is_that_of_the_input(spec: OpSpec) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    x = spec.sample(5).to("cuda:1")
    assert torch.equal(spec.op(x).cpu(), spec.op(x.to("cuda:0")).cpu())


def test_the_interpreter_agrees_with_the_compiled_kernel(spec: OpSpec) -> None:
    """What the proofs take a kernel to mean is what the compiled one does: forward and backward, to rounding."""
    interpret = pytest.importorskip("lemmata.proofs.engine.interpret").interpret
    kernels = importlib.import_module(f"lemmata.kernels.{spec.name}")
    config = kernels.Config()
    x, g = spec.sample(70, 4.0), spec.sample(70, seed=1)
    forward, backward = torch.empty_like(x), torch.empty_like(x)
    interpret(getattr(kernels, f"{spec.name}_fwd")(config), x, forward)
    interpret(getattr(kernels, f"{spec.name}_bwd")(config), g, x, backward)
    leaf = x.to(CUDA).requires_grad_()
    out = spec.op(leaf)
    out.backward(g.to(CUDA))
    assert leaf.grad is not None
    tolerance, tolerance_bwd = spec.tolerance("cuda", **spec.configurations[0])
    assert (out.detach().cpu() - forward).abs().max() <= tolerance
    assert (leaf.grad.cpu() - backward).abs().max() <= tolerance_bwd
    assert (leaf.grad.cpu() - backward * 1.001).abs().max() > tolerance_bwd, "a wrong scale would pass"


MEMCHECK = """
import torch
from opspec import SPECS
spec = next(s for s in SPECS if s.name == "{name}")
for count in (1, 31, 33):
    x = spec.sample(count).cuda().requires_grad_()
    spec.op(x).square().sum().backward()
torch.cuda.synchronize()
print("ran")
"""

PLANTED = """
import torch, tilelang, tilelang.language as T
@T.prim_func
def reads_past_the_end(x: T.Tensor((64,), "float32"), y: T.Tensor((64,), "float32")):
    with T.Kernel(1, threads=64):
        i = T.get_thread_binding()
        y[i] = x[i + 64]
k = tilelang.compile(reads_past_the_end, target="cuda", pass_configs={"tl.disable_safe_memory_legalize": True})
k(torch.zeros(64, device="cuda"), torch.zeros(64, device="cuda"))
torch.cuda.synchronize()
print("ran")
"""


def _memcheck(tmp_path: object, code: str) -> subprocess.CompletedProcess[str]:
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        pytest.skip("no compute-sanitizer")
    script = f"{tmp_path}/run.py"
    with open(script, "w") as file:
        file.write(code)
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": ":".join(p for p in sys.path if p)}
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, script]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_memcheck(spec: OpSpec, tmp_path: object) -> None:
    clean = _memcheck(tmp_path, MEMCHECK.format(name=spec.name))
    assert "ran" in clean.stdout, clean.stdout[-2000:] + clean.stderr[-2000:]
    assert clean.returncode == 0, clean.stdout[-2000:]
    assert _memcheck(tmp_path, PLANTED).returncode != 0, "a planted out-of-bounds read went unseen"
