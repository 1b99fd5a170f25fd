"""Hyper-connections of 4 streams: lemmata, TileKernels, torch.compile.

``lemmata bench mhc`` takes device time on a GPU; ``pytest bench/mhc.py`` the time of eager calls anywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from lemmata.bench.peers import difference, find
from lemmata.bench.roofline import bound
from lemmata.bench.timing import Call, Case
from lemmata.bindings.mhc import mhc_post
from lemmata.reference import mhc as reference
from lemmata.warmup import Job, to_disk

HC = 4
SHAPES = ((1, 4096), (32, 4096), (4096, 4096), (4096, 7168))
LIMITS = {("forward", 4096, 4096): 75.4, ("forward", 4096, 7168): 130.3}
LIMITS |= {("backward", *shape): 2.5 * limit for (_, *shape), limit in LIMITS.items()}
_PEER = "tile_kernels.mhc"


def compilations() -> Iterator[Job]:
    """Yield what to compile beforehand."""
    from lemmata.kernels.mhc_post import Config, mhc_post_bwd, mhc_post_fwd

    for hidden in sorted({hidden for _, hidden in SHAPES}):
        yield to_disk, mhc_post_fwd, Config(HC, hidden)
        yield to_disk, mhc_post_bwd, Config(HC, hidden)


def inputs(tokens: int, hidden: int, device: str = "cuda") -> tuple[Tensor, ...]:
    """Return x, y, post and comb of one call."""
    x, y = (torch.randn(tokens, *shape, device=device, dtype=torch.bfloat16) for shape in ((HC, hidden), (hidden,)))
    return x, y, torch.rand(tokens, HC, device=device), torch.rand(tokens, HC, HC, device=device)


def _with_gradient(tokens: int, hidden: int) -> tuple[Tensor, ...]:
    """Return a gradient of the result, then x, y, post and comb."""
    return inputs(tokens, hidden)[0], *inputs(tokens, hidden)


def _theirs(x: Tensor, y: Tensor, post: Tensor, comb: Tensor, *grad: Tensor) -> Call:
    """Return TileKernels' call on the same tensors: a batch of one, their names' order; with a gradient its backward."""
    peer = find(_PEER)
    assert peer
    run = peer.mhc_post_bwd if grad else peer.mhc_post_fwd
    return functools.partial(run, *(t.unsqueeze(0) for t in (y, x, post.unsqueeze(-1), comb, *grad)))


def _agree(run: Callable[..., Tensor], shape: tuple[int, int]) -> None:
    """Raise RuntimeError unless both compute the same from the same inputs."""
    tensors = inputs(*shape)
    apart = difference(run(*tensors), _theirs(*tensors)()[0])  # type: ignore[index]
    if not apart <= 1e-5:
        raise RuntimeError(f"mhc_post {shape}: expected TileKernels' result, got one that differs by {apart:.1e}")


def _forward(shape: tuple[int, int]) -> dict[str, Callable[[], Call]]:
    compiled = torch.compile(reference.mhc_post, dynamic=False)
    contenders: dict[str, Callable[[], Call]] = {
        "lemmata": lambda: functools.partial(torch.ops.lemmata.mhc_post_fwd.default, *inputs(*shape)),
        "torch.compile": lambda: functools.partial(compiled, *inputs(*shape)),
    }
    if find(_PEER):
        contenders["TileKernels"] = lambda: _theirs(*inputs(*shape))
    return contenders


def _backward(shape: tuple[int, int]) -> dict[str, Callable[[], Call]]:
    contenders: dict[str, Callable[[], Call]] = {
        "lemmata": lambda: functools.partial(torch.ops.lemmata.mhc_post_bwd.default, *_with_gradient(*shape))
    }
    if find(_PEER):
        contenders["TileKernels"] = lambda: _theirs(*inputs(*shape), inputs(*shape)[0])
    return contenders


def cases() -> Iterator[Case]:
    """Yield forward and backward of the streams after a layer at every shape."""
    absent = () if find(_PEER) else ("TileKernels",)
    for direction in ("forward", "backward"):
        for shape in SHAPES:
            tokens, hidden = shape
            rows, coefficients = (2 * HC + 1, 1) if direction == "forward" else (3 * HC + 2, 2)
            traffic = tokens * (2 * rows * hidden + 4 * coefficients * HC * (HC + 1))
            products = tokens * hidden * HC * (HC + 1) * coefficients
            least, why = bound(bytes=traffic, fp32=products)
            forward = direction == "forward"
            contenders = _forward(shape) if forward else _backward(shape)
            ours = torch.ops.lemmata.mhc_post_fwd.default
            agree = functools.partial(_agree, ours, shape) if forward and not absent else (lambda: None)
            limit = LIMITS.get((direction, *shape))
            name = f"{direction} {tokens} x {hidden}"
            yield Case("mhc_post", name, traffic, least, why, limit, contenders, absent, agree)


@pytest.mark.parametrize("tokens", [1, 1024])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_eager_call(benchmark: BenchmarkFixture, direction: str, tokens: int) -> None:
    """Return what one call of the public function costs its caller, waiting for the device included."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    leaves = [t.requires_grad_(direction == "backward") for t in inputs(tokens, 1024, device)]

    def step() -> None:
        out = mhc_post(*leaves)
        if direction == "backward":
            torch.autograd.grad(out, leaves, out.detach())
        if device == "cuda":
            torch.cuda.synchronize()

    step()
    benchmark.extra_info["device"] = device
    benchmark(step)
