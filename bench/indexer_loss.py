"""The indexer's loss with DeepSeek-V4-Flash's widths: lemmata, plain torch.

A chunk of 4096 queries at the end of a sequence of 4 T tokens: 512 of T entries for each query, and for the warm-up all that
it sees. Plain torch is what one writes from the formula: all rows of all queries are
gathered, products are in bf16, the softmax is in fp32, and autograd differentiates it. Gradients are timed with the loss that
they need.

``lemmata bench indexer_loss`` takes device time on a GPU; ``pytest bench/indexer_loss.py`` the time of eager calls anywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from lemmata.bench.peers import require_near
from lemmata.bench.roofline import bound
from lemmata.bench.timing import Call, Case
from lemmata.bindings.indexer import shipped as indexer_shipped
from lemmata.bindings.indexer_loss import indexer_loss, shipped
from lemmata.models import DEEPSEEK_V4
from lemmata.warmup import Job, to_disk

H, D, CORE_H, CORE_D, RATIO, K = 64, 128, 64, 512, 4, 512
QUERIES, SCALE = 4096, CORE_D**-0.5
BF16 = torch.bfloat16
FURTHEST = 1e-3  # the ``difference`` of results from plain torch's, which rounds dot products to bf16


class Inputs(NamedTuple):
    """What the loss takes; without indices, all that is seen is a candidate."""

    q: Tensor
    k: Tensor
    weights: Tensor
    core_q: Tensor
    compressed_kv: Tensor
    indices: Tensor | None
    sink: Tensor
    lse: Tensor


Loss = Callable[[Inputs, int], Tensor]
"""From inputs and an offset to the loss of each query."""


def compilations() -> Iterator[Job]:
    """Yield what to compile beforehand: what both forms launch, the scores and their gradients over all that is seen too."""
    flash, _ = DEEPSEEK_V4
    yield from ((to_disk, *kernel) for operator in (shipped, indexer_shipped) for kernel in operator(flash))


def inputs(queries: int, entries: int, listed: bool, device: str = "cuda") -> Inputs:
    """Return random inputs, of the last so many queries of a sequence; queries are tenths of random numbers."""
    seen = (RATIO * entries - queries + 1) // RATIO  # by the first of them
    return Inputs(
        torch.randn(1, queries, H, D, device=device, dtype=BF16),
        torch.randn(1, entries, D, device=device, dtype=BF16),
        torch.randn(1, queries, H, device=device) / (H * D) ** 0.5,
        torch.randn(1, queries, CORE_H, CORE_D, device=device, dtype=BF16) / 10,
        torch.randn(1, entries, CORE_D, device=device, dtype=BF16),
        torch.randint(seen, (1, queries, K), device=device, dtype=torch.int32) if listed else None,
        torch.randn(CORE_H, device=device),
        torch.randn(1, queries, CORE_H, device=device) + 7,
    )


def ours(x: Inputs, offset: int) -> Tensor:
    """Return the operator's loss."""
    return indexer_loss(*x, ratio=RATIO, offset=offset)


def plain(x: Inputs, offset: int) -> Tensor:
    """Return the loss as one writes it."""
    if x.indices is None:
        keys, rows = x.k.unsqueeze(1), x.compressed_kv.unsqueeze(1)
        position = offset + torch.arange(x.q.shape[1], device=x.q.device).unsqueeze(-1)
        hidden = torch.arange(x.k.shape[1], device=x.q.device) >= (position + 1) // RATIO
    else:
        keys, rows = x.k[0, x.indices], x.compressed_kv[0, x.indices]
        hidden = x.indices < 0
    scores = ((x.q @ keys.mT).relu() * x.weights.unsqueeze(-1)).sum(2).masked_fill(hidden, -torch.inf)
    logits = SCALE * (x.core_q @ rows.mT).float() - torch.logaddexp(x.lse, x.sink).unsqueeze(-1)
    mass = logits.exp().sum(2).masked_fill(hidden, 0)
    teacher = mass / mass.sum(-1, keepdim=True)
    apart = teacher.log() - scores.log_softmax(-1)
    return torch.where(teacher > 0, teacher * apart, 0).sum(-1)


def _call(loss: Loss, x: Inputs, offset: int, graded: bool) -> Callable[[], tuple[Tensor, ...]]:
    """Return a call of the loss, or of its gradients too."""
    if not graded:
        return lambda: (loss(x, offset),)
    leaves = [t.requires_grad_() for t in (x.q, x.k, x.weights)]

    def call() -> tuple[Tensor, ...]:
        out = loss(x, offset)
        return out.detach(), *torch.autograd.grad(out.mean(), leaves)

    return call


def agree(make: Callable[[], Inputs], offset: int, graded: bool) -> None:
    """Raise unless the operator's results are near plain torch's."""
    x = make()
    results, wanted = (_call(loss, x, offset, graded)() for loss in (ours, plain))
    require_near(results, wanted, FURTHEST, "plain torch's")


def _case(entries: int, listed: bool, graded: bool) -> Case:
    make, offset = functools.partial(inputs, QUERIES, entries, listed), RATIO * entries - QUERIES

    def contender(loss: Loss) -> Call:
        return _call(loss, make(), offset, graded)

    candidates = QUERIES * K if listed else sum((offset + t + 1) // RATIO for t in range(QUERIES))
    once = QUERIES * (2 * H * D + 4 * H) + 2 * entries * D
    read = once + QUERIES * (2 * CORE_H * CORE_D + 4 * CORE_H) + 2 * entries * CORE_D + 4 * QUERIES * K * listed
    traffic = read + (once if graded else 0)
    products = CORE_H * CORE_D + (3 if graded else 1) * H * D
    least, why = bound(bytes=traffic, special=CORE_H * candidates, bf16=2 * candidates * products)
    some = f"{K} of {entries}" if listed else f"all of {entries}"
    shape = f"{'loss and gradients' if graded else 'loss'}, {QUERIES} queries, {some} entries"
    contenders = {"lemmata": functools.partial(contender, ours), "plain torch": functools.partial(contender, plain)}
    same = functools.partial(agree, make, offset, graded)
    return Case("indexer_loss", shape, traffic, least, why, None, contenders, (), same)


def cases() -> Iterator[Case]:
    """Yield the loss alone and with its gradients, over a list and over all that is seen."""
    for graded in (False, True):
        yield _case(8192, True, graded)
        yield _case(2048, False, graded)


@pytest.mark.parametrize("listed", [True, False])
def test_eager_call(benchmark: BenchmarkFixture, listed: bool) -> None:
    """Return what the loss of 8 queries and its gradients cost their caller, waiting for the device included."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    call = _call(ours, inputs(8, 1024, listed, device), RATIO * 1024 - 8, graded=True)

    def step() -> None:
        call()
        if device == "cuda":
            torch.cuda.synchronize()

    step()
    benchmark.extra_info["device"] = device
    benchmark(step)
