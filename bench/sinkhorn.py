"""Sinkhorn, 4 x 4 and 20 iterations: lemmata, TileKernels, torch.compile.

``lemmata bench sinkhorn`` takes device time on a GPU; ``pytest bench/sinkhorn.py`` the time of eager calls anywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from lemmata.bench.peers import find
from lemmata.bench.roofline import bound
from lemmata.bench.timing import Call, Case
from lemmata.bindings.sinkhorn import sinkhorn
from lemmata.reference import sinkhorn as reference
from lemmata.warmup import Job, to_disk

N, ITERATIONS, EPS = 4, 20, 1e-6
COUNTS = (1024, 4096, 32768, 131072)
LIMITS = {("forward", 4096): 3.5, ("forward", 131072): 15.0, ("backward", 4096): 7.0, ("backward", 131072): 45.0}

# Per matrix: a step is n² + n multiply-adds and n reciprocals; undoing it 2n² + n; softmax n² exponentials.
STEPS = 2 * ITERATIONS - 1
STEP, STEP_BACK, SOFTMAX = N * N + N, 2 * N * N + N, 6 * N * N


def compilations() -> Iterator[Job]:
    """Yield what to compile beforehand."""
    from lemmata.kernels.sinkhorn import Config, sinkhorn_bwd, sinkhorn_fwd

    yield to_disk, sinkhorn_fwd, Config(N, ITERATIONS, EPS)
    yield to_disk, sinkhorn_bwd, Config(N, ITERATIONS, EPS)


def _logits(count: int) -> torch.Tensor:
    return torch.randn(count, N, N, device="cuda")


def _forward(count: int) -> dict[str, Callable[[], Call]]:
    def lemmata() -> Call:
        return functools.partial(torch.ops.lemmata.sinkhorn_fwd.default, _logits(count), ITERATIONS, EPS)

    compiled = torch.compile(reference.sinkhorn, dynamic=False)

    def torch_compile() -> Call:
        return functools.partial(compiled, _logits(count), ITERATIONS, EPS)

    contenders: dict[str, Callable[[], Call]] = {"lemmata": lemmata, "torch.compile": torch_compile}
    if peer := find("tile_kernels.mhc"):

        def tile_kernels() -> Call:
            x = _logits(count)
            return functools.partial(peer.mhc_sinkhorn_fwd, x, torch.empty_like(x), ITERATIONS, EPS)

        contenders["TileKernels"] = tile_kernels
    return contenders


def _backward(count: int) -> dict[str, Callable[[], Call]]:
    def lemmata() -> Call:
        op = torch.ops.lemmata.sinkhorn_bwd.default
        return functools.partial(op, _logits(count), _logits(count), ITERATIONS, EPS)

    contenders: dict[str, Callable[[], Call]] = {"lemmata": lemmata}
    if peer := find("tile_kernels.mhc"):

        def tile_kernels() -> Call:
            x = _logits(count)
            return functools.partial(peer.mhc_sinkhorn_bwd, _logits(count), x, torch.empty_like(x), ITERATIONS, EPS)

        contenders["TileKernels"] = tile_kernels
    return contenders


def cases() -> Iterator[Case]:
    """Yield forward and backward at every count."""
    for direction in ("forward", "backward"):
        for count in COUNTS:
            limit = LIMITS.get((direction, count))
            back = direction == "backward"
            traffic = count * N * N * 4 * (3 if back else 2)
            least, why = bound(
                bytes=traffic,
                fp32=count * (STEPS * (STEP + back * STEP_BACK) + (1 + back) * SOFTMAX),
                special=count * (STEPS * N + (1 + back) * (N * N + N)),
            )
            contenders = _backward(count) if back else _forward(count)
            yield Case("sinkhorn", f"{direction} {count}", traffic, least, why, limit, contenders)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_eager_call(benchmark: BenchmarkFixture, direction: str, count: int) -> None:
    """Return what one call of the public function costs its caller, waiting for the device included."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    logits = torch.randn(count, N, N, device=device, requires_grad=direction == "backward")
    grad = torch.randn(count, N, N, device=device)

    def step() -> None:
        out = sinkhorn(logits)
        if direction == "backward":
            torch.autograd.grad(out, logits, grad)
        if device == "cuda":
            torch.cuda.synchronize()

    step()
    benchmark.extra_info["device"] = device
    benchmark(step)
