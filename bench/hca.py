"""HCA with DeepSeek-V4-Flash's 64 heads of width 512 and a window of 128, at 131072 tokens and a million: lemmata, FlashMLA.

Prefill is the last 4096 queries, decode the last one of each sequence. FlashMLA is given a list of every entry that a query
sees.

``lemmata bench hca`` takes device time on a GPU; ``pytest bench/hca.py`` the time of eager calls anywhere.
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
from lemmata.bindings.hca import hca, reference_bwd, sums_of_parts
from lemmata.bindings.sparse_attention import with_combine
from lemmata.bindings.splits import MOST
from lemmata.reference.indexer import visible
from lemmata.warmup import Job, to_disk

H, RATIO, TOKENS, LONG = 64, 128, 2**17, 2**20
QUERIES = 4096


def compilations() -> Iterator[Job]:
    """Yield what to compile beforehand: the kernels that the cases launch; FlashMLA comes compiled."""
    from lemmata.kernels.given_splits import hca_config
    from lemmata.kernels.hca import choose, hca_bwd, hca_fwd
    from lemmata.kernels.sparse_attention_config import BackwardConfig

    for S in (QUERIES, 1):
        cfg = choose(S, H, D, RATIO, WINDOW, SCALE)
        yield from ((to_disk, *kernel) for kernel in with_combine(hca_fwd, cfg))
    for splits in (3, MOST):
        cfg = hca_config(splits, 1, H, D, RATIO, WINDOW, SCALE)
        yield from ((to_disk, *kernel) for kernel in with_combine(hca_fwd, cfg))
    yield to_disk, hca_bwd, BackwardConfig(H, D, WINDOW, SCALE, RATIO)
    yield from ((to_disk, *kernel) for kernel in sums_of_parts(H, D, WINDOW, RATIO))


def _seen(S: int, T: int, offset: Tensor) -> Tensor:
    """Return the entries that each query sees."""
    entry = torch.arange(T, device=offset.device)
    return torch.where(entry < visible(offset, S, RATIO).unsqueeze(-1), entry, -1)


def inputs(sizes: Sizes, device: str = "cuda") -> Inputs:
    """Return a case in which every query attends to the entries of its past."""
    return attention.inputs(sizes, functools.partial(_seen, sizes.S, sizes.T), device)


def _ours(x: Inputs) -> Results:
    tensors = x.q, x.window_kv, x.compressed_kv, x.sink, x.offset
    return functools.partial(torch.ops.lemmata.hca_fwd.default, *tensors, RATIO, WINDOW, SCALE)


def _case(B: int, S: int, tokens: int, limit: float | None = None) -> Case:
    sizes = Sizes(B, S, H, tokens // RATIO, tokens)
    attended = B * int(visible(torch.tensor([tokens - S]), S, RATIO).sum())
    return attention.case("hca", sizes, attended, 0, limit, functools.partial(inputs, sizes), _ours)


def _tensors(x: Inputs, grads: Upstream) -> tuple[Tensor, ...]:
    """Return the tensors of the backward."""
    return *grads, x.q, x.window_kv, x.compressed_kv.nan_to_num(), x.sink, x.offset, *_ours(x)()


def _bwd(x: Inputs, grads: Upstream) -> Gradients:
    return functools.partial(torch.ops.lemmata.hca_bwd.default, *_tensors(x, grads), RATIO, WINDOW, SCALE)


def _reference_bwd(x: Inputs, grads: Upstream) -> Gradients:
    return functools.partial(reference_bwd, *_tensors(x, grads), RATIO, WINDOW, SCALE)


def _backward(limit: float) -> Case:
    sizes = Sizes(1, QUERIES, H, TOKENS // RATIO, TOKENS)
    seen = int(visible(torch.tensor([TOKENS - QUERIES]), QUERIES, RATIO).sum())
    make = functools.partial(inputs, sizes)
    return attention.backward_case("hca", sizes, seen, limit, make, Backward(_ours, _bwd, _reference_bwd))


def cases() -> Iterator[Case]:
    """Yield prefill, of a million tokens too, decode at three batches and in other splits, and the backward of the prefill."""
    yield _case(1, QUERIES, TOKENS, 1350.0)
    yield _case(1, QUERIES, LONG)
    for sequences in (1, 32, 128):
        yield _case(sequences, 1, TOKENS)
    for splits, sequences in ((MOST, 1), (1, 1), (3, 32), (1, 32), (3, 128), (1, 128)):
        yield attention.in_splits(splits, _case(sequences, 1, TOKENS))
    yield _backward(5000.0)


@pytest.mark.parametrize("tokens", [8192, TOKENS])
def test_eager_call(benchmark: BenchmarkFixture, tokens: int) -> None:
    """Return what a decode step of one sequence costs its caller, waiting for the device included."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = inputs(Sizes(1, 1, H, tokens // RATIO, tokens), device)

    def step() -> None:
        hca(x.q, x.window_kv, x.compressed_kv, x.sink, ratio=RATIO, offset=x.offset)
        if device == "cuda":
            torch.cuda.synchronize()

    step()
    benchmark.extra_info["device"] = device
    benchmark(step)
