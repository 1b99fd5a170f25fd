"""What only a GPU shows. Run with `pytest -m gpu`; the verdicts go into the record."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import torch

from inputs import Call
from opspec import OpSpec
from specs import SPECS

pytestmark = [pytest.mark.gpu, pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)]


def copy(call: Call, source: Call) -> None:
    """Other values for the same call, in place."""
    for tensor, other in zip(call.tensors, source.tensors, strict=True):
        tensor.copy_(other)


def test_a_thousand_repetitions_are_bitwise_equal(spec: OpSpec) -> None:
    call = spec.sample(magnitude=4.0, **spec.large).to("cuda")
    g = torch.randn(spec.run(call).shape, generator=torch.Generator().manual_seed(1)).to("cuda")
    out, grads = spec.grads(spec.op, call, g)
    for _ in range(1000):
        again, again_grads = spec.grads(spec.op, call, g)
        assert torch.equal(again, out)
        assert all(torch.equal(a, b) for a, b in zip(again_grads, grads, strict=True))


def test_a_cuda_graph_replays_on_new_values(spec: OpSpec) -> None:
    call = spec.sample(100).to("cuda")
    spec.run(call)  # compiles: nothing may compile during a capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = spec.run(call)
    copy(call, spec.sample(100, seed=5))
    graph.replay()
    assert torch.equal(out, spec.run(call))
    assert not torch.equal(out, spec.run(spec.sample(100).to("cuda")))


def test_the_current_stream_is_used(spec: OpSpec) -> None:
    late = spec.sample(100).to("cuda")
    call = late.map(torch.zeros_like)
    expected = spec.run(late)
    assert not torch.equal(spec.run(call), expected)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # a tenth of a second: a launch on another stream would read zeros
        copy(call, late)
        out = spec.run(call)
    stream.synchronize()
    assert torch.equal(out, expected)


def test_the_device_is_that_of_the_input(spec: OpSpec) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    call = spec.sample(5)
    assert torch.equal(spec.run(call.to("cuda:1")).cpu(), spec.run(call.to("cuda:0")).cpu())


MEMCHECK = """
import torch
from specs import SPECS
spec = next(s for s in SPECS if s.name == "{name}")
for rows in (1, 31, 33):
    call = spec.sample(rows).to("cuda")
    out = spec.run(call)
    if spec.differentiable:
        spec.grads(spec.op, call, torch.ones_like(out))
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
