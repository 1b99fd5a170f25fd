"""SWA with DeepSeek-V4-Flash's 64 heads of width 512 and a window of 128: lemmata, FlashMLA.

Prefill is the last 4096 queries of a sequence, decode the last one of each sequence.

``lemmata bench swa`` takes device time on a GPU; ``pytest bench/swa.py`` the time of eager calls anywhere.
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
from lemmata.bindings.gradients import sums
from lemmata.bindings.swa import reference_bwd, swa
from lemmata.warmup import Job, to_disk

H, TOKENS, QUERIES = 64, 131072, 4096


def compilations() -> Iterator[Job]:
    """Yield what to compile beforehand: the kernels that the cases launch; FlashMLA comes compiled."""
    from lemmata.kernels.hca import choose_swa, hca_bwd, hca_fwd
    from lemmata.kernels.sparse_attention_config import BackwardConfig

    yield to_disk, hca_fwd, choose_swa(H, D, WINDOW, SCALE)
    yield to_disk, hca_bwd, BackwardConfig(H, D, WINDOW, SCALE, 1)
    yield from ((to_disk, *kernel) for kernel in sums(H, D, WINDOW))


def _no_entries(S: int, offset: Tensor) -> Tensor:
    return offset.new_empty(len(offset), S, 0)


def inputs(sizes: Sizes, device: str = "cuda") -> Inputs:
    """Return a case in which every query attends to its window alone."""
    return attention.inputs(sizes, functools.partial(_no_entries, sizes.S), device)


def _ours(x: Inputs) -> Results:
    return functools.partial(torch.ops.lemmata.swa_fwd.default, x.q, x.window_kv, x.sink, x.offset, WINDOW, SCALE)


def _case(B: int, S: int, heads: int = H) -> Case:
    sizes = Sizes(B, S, heads, 0, TOKENS)
    return attention.case("swa", sizes, 0, 0, None, functools.partial(inputs, sizes), _ours)


def _tensors(x: Inputs, grads: Upstream) -> tuple[Tensor, ...]:
    """Return the tensors of the backward."""
    return *grads, x.q, x.window_kv, x.sink, x.offset, *_ours(x)()


def _bwd(x: Inputs, grads: Upstream) -> Gradients:
    return functools.partial(torch.ops.lemmata.swa_bwd.default, *_tensors(x, grads), WINDOW, SCALE)


def _reference_bwd(x: Inputs, grads: Upstream) -> Gradients:
    return functools.partial(reference_bwd, *_tensors(x, grads), WINDOW, SCALE)


def _backward() -> Case:
    sizes = Sizes(1, QUERIES, H, 0, TOKENS)
    make = functools.partial(inputs, sizes)
    return attention.backward_case("swa", sizes, 0, None, make, Backward(_ours, _bwd, _reference_bwd))


def cases() -> Iterator[Case]:
    """Yield prefill, decode at two batches, and the backward of the prefill."""
    yield _case(1, QUERIES)
    for sequences in (1, 128):
        yield _case(sequences, 1)
    yield _backward()


@pytest.mark.parametrize("heads", [8, H])
def test_eager_call(benchmark: BenchmarkFixture, heads: int) -> None:
    """Return what a decode step of one sequence costs its caller, waiting for the device included."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = inputs(Sizes(1, 1, heads, 0, TOKENS), device)

    def step() -> None:
        swa(x.q, x.window_kv, x.sink, offset=x.offset)
        if device == "cuda":
            torch.cuda.synchronize()

    step()
    benchmark.extra_info["device"] = device
    benchmark(step)
