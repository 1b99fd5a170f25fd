"""The KV compressor at DeepSeek-V4's widths: lemmata, torch.compile of the reference.

Each case has 32768 tokens, or one block: of CSA's attention (4 tokens with overlap, 512 channels) and of its indexer (128
channels), and of HCA (128 tokens).

``lemmata bench compressor`` takes device time on a GPU; ``pytest bench/compressor.py`` the time of eager calls anywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from lemmata.bench.compressor_step import BATCHES
from lemmata.bench.compressor_step import case as step
from lemmata.bench.roofline import bound
from lemmata.bench.timing import Call, Case
from lemmata.bindings.compressor import compress
from lemmata.operators import OPERATORS
from lemmata.reference import compressor as reference
from lemmata.warmup import Job, to_disk

TOKENS, PAIRS, EPS = 32768, 32, 1e-6
KINDS = {"C4, 512": (4, 512), "C4, 128": (4, 128), "C128, 512": (128, 512)}
"""Tokens of a block and channels of an entry; blocks of 4 overlap."""
LIMITS = {("forward", "C4, 512"): 75.0, ("forward", "C128, 512"): 36.0}
LIMITS |= {("backward", kind): 2.5 * limit for (_, kind), limit in LIMITS.items()}


def compilations() -> Iterator[Job]:
    """Yield what to compile beforehand: all that ships."""
    for factory, config in OPERATORS["compressor"].shipped():
        yield to_disk, factory, config


def inputs(tokens: int, kind: str, device: str = "cuda") -> tuple[Tensor, ...]:
    """Return kv, gate, ape, norm_weight, rotation and offset of one call."""
    ratio, D = KINDS[kind]
    wide = (1 + (ratio == 4)) * D
    kv, gate = (torch.randn(1, tokens, wide, device=device) for _ in range(2))
    angles = torch.outer(torch.arange(tokens, device=device), 160000.0 ** -(torch.arange(PAIRS, device=device) / PAIRS))
    rotation = torch.stack([angles.cos(), angles.sin()], -1)
    weights = torch.randn(ratio, wide, device=device), torch.rand(D, device=device)
    return kv, gate, *weights, rotation, torch.zeros(1, dtype=torch.int32, device=device)


def _forward(op: Callable[..., object], tokens: int, kind: str) -> Call:
    return functools.partial(op, *inputs(tokens, kind), 0, EPS)


def _backward(op: Callable[..., object], tokens: int, kind: str) -> Call:
    ratio, D = KINDS[kind]
    grad = torch.randn(1, tokens // ratio, D, device="cuda", dtype=torch.bfloat16)
    given = inputs(tokens, kind)
    return functools.partial(op, grad, *given, torch.ops.lemmata.compress_fwd.default(*given, 0, EPS)[1], 0, EPS)


def _case(direction: str, tokens: int, kind: str) -> Case:
    """Return a case; its bound reads values and logits once, in the backward writes as much, and has the entries besides."""
    ratio, D = KINDS[kind]
    rows, forward = 4 * tokens * (1 + (ratio == 4)) * D, direction == "forward"
    traffic = (2 if forward else 4) * rows + 2 * (tokens // ratio) * D
    least, why = bound(bytes=traffic, fp32=(4 if forward else 12) * rows // 4)
    ops = torch.ops.lemmata.compress_fwd.default, torch.ops.lemmata.compress_bwd.default
    formulas = reference.compress, reference.compress_bwd
    make, at = (_forward, 0) if forward else (_backward, 1)
    contenders = {
        "lemmata": functools.partial(make, ops[at], tokens, kind),
        "torch.compile": functools.partial(make, torch.compile(formulas[at], dynamic=False), tokens, kind),
    }
    limit = LIMITS.get((direction, kind)) if tokens == TOKENS else None
    return Case("compress", f"{direction} {tokens}, {kind}", traffic, least, why, limit, contenders)


def cases() -> Iterator[Case]:
    """Yield every kind of 32768 tokens, forward and backward, the forward of one block, and steps of one token."""
    for direction in ("forward", "backward"):
        yield from (_case(direction, TOKENS, kind) for kind in KINDS)
    yield from (_case("forward", ratio, kind) for kind, (ratio, _) in KINDS.items())
    yield from (step(B, kind, *sizes) for kind, sizes in KINDS.items() for B in BATCHES)


@pytest.mark.parametrize("tokens", [128, 1024])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_eager_call(benchmark: BenchmarkFixture, direction: str, tokens: int) -> None:
    """Return what one call of the public function costs its caller, waiting for the device included."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kv, gate, ape, norm_weight, rotation, _ = inputs(tokens, "C4, 128", device)
    leaves = kv, gate, ape, norm_weight
    for leaf in leaves:
        leaf.requires_grad_(direction == "backward")

    def step() -> None:
        out = compress(kv, gate, ape, norm_weight, rotation)
        if direction == "backward":
            torch.autograd.grad(out, leaves, out.detach())
        if device == "cuda":
            torch.cuda.synchronize()

    step()
    benchmark.extra_info["device"] = device
    benchmark(step)
