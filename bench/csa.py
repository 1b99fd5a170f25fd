"""CSA with DeepSeek-V4's heads of width 512 and a window of 128: lemmata, FlashMLA.

Prefill is a chunk of 4096 queries at the end of a sequence of 4 T tokens, T entries; decode one query of each sequence, or
four. The entries of a query are drawn at random from its past: neighbours share some by chance only, which is the worst for
the cache. The bound does not hold the gather: each query fetches its keys through L2, 2.7 GB in all for 4096 queries of 640
keys.

``lemmata bench csa`` takes device time on a GPU; ``pytest bench/csa.py`` the time of eager calls anywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from lemmata.bench import attention
from lemmata.bench.attention import SCALE, WINDOW, Backward, Inputs, Results, Sizes, Upstream
from lemmata.bench.pages import D
from lemmata.bench.peers import Gradients
from lemmata.bench.timing import Case
from lemmata.bindings.csa import csa, reference_bwd, sums_of_parts
from lemmata.bindings.sparse_attention import with_combine
from lemmata.bindings.splits import MOST
from lemmata.reference.indexer import visible
from lemmata.warmup import Job, to_disk

RATIO = 4
FLASH, PRO = (64, 512), (128, 1024)  # heads, entries of a query
QUERIES, DRAFTED = 4096, 4


def compilations() -> Iterator[Job]:
    """Yield what to compile beforehand: the kernels that the cases launch; FlashMLA comes compiled."""
    from lemmata.kernels.csa import choose, csa_bwd, csa_fwd
    from lemmata.kernels.given_splits import csa_config
    from lemmata.kernels.sparse_attention_config import BackwardConfig

    for S, (H, K) in (
        (QUERIES, FLASH),
        (QUERIES, PRO),
        (QUERIES, (8, FLASH[1])),
        (QUERIES, (16, FLASH[1])),
        (1, FLASH),
        (1, PRO),
        (DRAFTED, FLASH),
    ):
        cfg = choose(S, H, D, K, WINDOW, SCALE)
        yield from ((to_disk, *kernel) for kernel in with_combine(csa_fwd, cfg))
    for splits, (H, K) in ((5, FLASH), (MOST, PRO)):
        yield from (
            (to_disk, *kernel) for kernel in with_combine(csa_fwd, csa_config(splits, 1, H, D, K, WINDOW, SCALE))
        )
    for H in (FLASH[0], PRO[0], 8):
        yield to_disk, csa_bwd, BackwardConfig(H, D, WINDOW, SCALE)
        yield from ((to_disk, *kernel) for kernel in sums_of_parts(H, D, WINDOW))


def _drawn(S: int, T: int, K: int, offset: Tensor) -> Tensor:
    """Return K entries that each query sees, in no order."""
    lots = torch.rand(len(offset), S, T, device=offset.device)
    seen = torch.arange(T, device=offset.device) < visible(offset, S, RATIO).unsqueeze(-1)
    return lots.masked_fill_(~seen, -1).topk(K).indices


def inputs(sizes: Sizes, K: int, device: str = "cuda") -> Inputs:
    """Return a case in which every query attends to K entries."""
    return attention.inputs(sizes, functools.partial(_drawn, sizes.S, sizes.T, K), device)


def _ours(x: Inputs) -> Results:
    tensors = x.q, x.window_kv, x.compressed_kv, x.entries, x.sink, x.offset
    return functools.partial(torch.ops.lemmata.csa_fwd.default, *tensors, WINDOW, SCALE)


def _case(B: int, S: int, H: int, T: int, K: int, limit: float | None = None) -> Case:
    sizes, entries = Sizes(B, S, H, T, RATIO * T), B * S * K
    return attention.case("csa", sizes, entries, entries, limit, functools.partial(inputs, sizes, K), _ours)


def _tensors(x: Inputs, grads: Upstream) -> tuple[Tensor, ...]:
    """Return the tensors of the backward."""
    return *grads, x.q, x.window_kv, x.compressed_kv.nan_to_num(), x.entries, x.sink, x.offset, *_ours(x)()


def _bwd(x: Inputs, grads: Upstream) -> Gradients:
    return functools.partial(torch.ops.lemmata.csa_bwd.default, *_tensors(x, grads), WINDOW, SCALE)


def _reference_bwd(x: Inputs, grads: Upstream) -> Gradients:
    return functools.partial(reference_bwd, *_tensors(x, grads), WINDOW, SCALE)


def _backward(H: int, T: int, K: int, limit: float | None = None) -> Case:
    sizes = Sizes(1, QUERIES, H, T, max(RATIO * T, QUERIES))
    make = functools.partial(inputs, sizes, K)
    return attention.backward_case("csa", sizes, QUERIES * K, limit, make, Backward(_ours, _bwd, _reference_bwd, K))


def cases() -> Iterator[Case]:
    """Yield prefill of Flash, of Pro, of Flash's heads on one of 8 or 4 devices, and over many entries.

    Then decode of Flash, with one query of a sequence and with four, and of Pro; and some of these in other splits.
    Then the backward of Flash, over few and many entries, of Pro, and of Flash's heads on one of 8 devices.
    """
    heads, K = FLASH
    yield _case(1, QUERIES, heads, 2048, K, 800.0)
    yield _case(1, QUERIES, heads, 65536, K)
    yield _case(1, QUERIES, PRO[0], 2048, PRO[1], 2600.0)
    yield _case(1, QUERIES, heads // 8, 2048, K)
    yield _case(1, QUERIES, heads // 4, 2048, K)
    yield _case(128, 1, heads, 2048, K, 60.0)
    yield _case(1, 1, heads, 2048, K, 15.0)
    for sequences in (8, 32):
        yield _case(sequences, 1, heads, 2048, K)
    for sequences in (1, 32):
        yield _case(sequences, DRAFTED, heads, 2048, K)
    for sequences in (1, 32, 128):
        yield _case(sequences, 1, PRO[0], 2048, PRO[1])
    for splits, sequences in ((5, 1), (5, 8), (1, 1), (1, 32), (1, 128)):
        yield attention.in_splits(splits, _case(sequences, 1, heads, 2048, K))
    yield attention.in_splits(1, _case(32, DRAFTED, heads, 2048, K))
    for splits, sequences in ((MOST, 1), (1, 32), (1, 128)):
        yield attention.in_splits(splits, _case(sequences, 1, PRO[0], 2048, PRO[1]))
    yield _backward(heads, 8192, K, 3400.0)
    yield _backward(heads, 65536, K, 5600.0)
    yield _backward(PRO[0], 8192, PRO[1], 11000.0)
    yield _backward(heads // 8, 8192, K, 1950.0)


@pytest.mark.parametrize("heads", [8, 64])
def test_eager_call(benchmark: BenchmarkFixture, heads: int) -> None:
    """Return what a decode step of one sequence costs its caller, waiting for the device included."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = inputs(Sizes(1, 1, heads, 2048, RATIO * 2048), FLASH[1], device)

    def step() -> None:
        csa(x.q, x.window_kv, x.compressed_kv, x.entries, x.sink, offset=x.offset)
        if device == "cuda":
            torch.cuda.synchronize()

    step()
    benchmark.extra_info["device"] = device
    benchmark(step)
