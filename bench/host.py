"""What an eager call costs the host: all that lies between the caller and the launch of a kernel, without that launch.

``pytest bench/host.py`` times the public functions at decode, on any machine with TileLang. Tensors are the CPU's, what runs is
what runs on a GPU, and each kernel is a function that does nothing. So launches come on top, and memory is that of the CPU.
The clock counts the time of the thread alone; of a call's times, the least is the one to compare. Two others say how fast the
machine is: an ``x + 1``, and a call of TVM's that passes on the eight tensors of a kernel.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch._C import DispatchKey

import lemmata
from lemmata.bindings.registry import IMPLEMENTATIONS

Call = Callable[[], object]
BF16, FP8, I32 = torch.bfloat16, torch.float8_e4m3fn, torch.int32
CONTEXT, WINDOW, RATIO = 32768, 128, 4


@contextmanager
def without_launches() -> Iterator[None]:
    """Run on CPU tensors what CUDA tensors would have run, with kernels that do nothing."""
    pytest.importorskip("tilelang")
    from lemmata.kernels import build

    def nothing(*_: object) -> None: ...

    on_cpu = {name: by_key[DispatchKey.CPU] for name, by_key in IMPLEMENTATIONS.items()}
    build.forget()
    with (
        patch("tilelang.compile", lambda *_, **__: None),
        patch.object(build, "entry", lambda _: nothing),
        patch.object(torch.cuda, "current_device", lambda: -1),  # as a tensor on the CPU says of its own
    ):
        for by_key in IMPLEMENTATIONS.values():
            by_key[DispatchKey.CPU] = by_key[DispatchKey.CUDA]
        try:
            yield
        finally:
            build.forget()
            for name, implementation in on_cpu.items():
                IMPLEMENTATIONS[name][DispatchKey.CPU] = implementation


def calls(*, recorded: bool = False) -> dict[str, Call]:
    """Return the calls of one decode step at 32768 tokens by name; ``recorded`` by autograd, those that have a derivative."""
    T, offset = CONTEXT // RATIO, torch.full((1,), CONTEXT - 1, dtype=I32)
    q = torch.zeros(1, 1, 64, 512, dtype=BF16, requires_grad=recorded)
    keys, sink = (torch.zeros(1, WINDOW, 512, dtype=BF16), torch.zeros(1, T, 512, dtype=BF16)), torch.zeros(64)
    indices = torch.zeros(1, 1, 512, dtype=I32)
    index = (torch.zeros(1, 1, 64, 128, dtype=BF16, requires_grad=recorded), torch.zeros(1, T, 128, dtype=BF16))
    weights, logits = torch.zeros(1, 1, 64), torch.zeros(1, 1, 4, 4, requires_grad=recorded)
    rows = torch.zeros(1, 2 * RATIO, 1024, requires_grad=recorded), torch.zeros(1, 2 * RATIO, 1024)
    streams = torch.zeros(1, 1, 4, 4096, dtype=BF16, requires_grad=recorded)
    layer, post = torch.zeros(1, 1, 4096, dtype=BF16), torch.zeros(1, 1, 4)
    of_streams = torch.zeros(24, 4 * 4096), torch.zeros(3), torch.zeros(24)
    of_entries = torch.zeros(RATIO, 1024), torch.zeros(512), torch.zeros(CONTEXT, 32, 2)
    found: dict[str, Call] = {
        "sinkhorn": functools.partial(lemmata.sinkhorn, logits),
        "csa": functools.partial(lemmata.csa, q, *keys, indices, sink, offset=offset),
        "csa, offset a number": functools.partial(lemmata.csa, q, *keys, indices, sink, offset=CONTEXT - 1),
        "hca": functools.partial(lemmata.hca, q, *keys, sink, offset=offset),
        "swa": functools.partial(lemmata.swa, q, keys[0], sink, offset=offset),
        "mhc_pre": functools.partial(lemmata.mhc_pre, streams, *of_streams),
        "mhc_post": functools.partial(lemmata.mhc_post, streams, layer, post, logits),
        "mhc_head": functools.partial(
            lemmata.mhc_head, streams, of_streams[0][:4], of_streams[1][:1], of_streams[2][:4]
        ),
        "compress": functools.partial(lemmata.compress, *rows, *of_entries, offset=offset, past=RATIO),
        "indexer_scores, bf16": functools.partial(lemmata.indexer_scores, *index, weights, offset=offset),
    }
    if recorded:
        return found
    scores, lengths = torch.zeros(1, T), torch.full((1,), T, dtype=I32)
    in_fp8 = functools.partial(lemmata.indexer_topk, index[0].to(FP8), index[1].to(FP8), weights, topk=512)
    fp8 = functools.partial(in_fp8, k_scale=torch.ones(1, T))
    return found | {
        "topk": functools.partial(lemmata.topk, scores, lengths=lengths, k=512),
        "topk, no lengths": functools.partial(lemmata.topk, scores, k=512),
        "indexer_topk, fp8": functools.partial(fp8, offset=offset),
        "indexer_topk, fp8, offset a number": functools.partial(fp8, offset=CONTEXT - 1),
        "indexer_topk, bf16": functools.partial(lemmata.indexer_topk, *index, weights, offset=offset, topk=512),
    }


def _timed(benchmark: BenchmarkFixture, call: Call) -> None:
    """Time a call once it has compiled."""
    call()
    benchmark(call)


thread_time = pytest.mark.benchmark(timer=time.thread_time)


@thread_time
def test_add(benchmark: BenchmarkFixture) -> None:
    """Time the least that torch does."""
    x = torch.zeros(8)
    _timed(benchmark, lambda: x + 1)


@thread_time
def test_tvm_call(benchmark: BenchmarkFixture) -> None:
    """Time a call of TVM's that does nothing with eight tensors: the least that a launch costs on top of CUDA's own."""
    tvm_ffi = pytest.importorskip("tvm_ffi")
    nothing = tvm_ffi.get_global_func("testing.nop")
    _timed(benchmark, functools.partial(nothing, *(torch.zeros(1, 8) for _ in range(8))))


@thread_time
@pytest.mark.parametrize("name", calls())
def test_without_gradients(benchmark: BenchmarkFixture, name: str) -> None:
    """Time a call as a server makes it."""
    with without_launches(), torch.no_grad():
        _timed(benchmark, calls()[name])


@thread_time
@pytest.mark.parametrize("name", calls(recorded=True))
def test_recorded(benchmark: BenchmarkFixture, name: str) -> None:
    """Time a call that autograd records."""
    with without_launches():
        _timed(benchmark, calls(recorded=True)[name])
