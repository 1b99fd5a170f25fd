"""Top-k, the 512 largest of rows of scores: lemmata, torch.topk, FlashInfer.

``torch.topk`` promises less: its choice among equal scores is unspecified, it takes NaN as the largest, and it is not asked
here for the indices in any order, which would cost it time. FlashInfer is asked for what lemmata promises of them, repeatable
results with ties to the smaller index; it returns the values too, and indices in int64.

``lemmata bench topk`` takes device time on a GPU; ``pytest bench/topk.py`` the time of eager calls anywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from lemmata.bench.peers import find
from lemmata.bench.roofline import bound
from lemmata.bench.timing import Call, Case
from lemmata.bindings.topk import topk
from lemmata.warmup import Job, to_disk

K, PEER = 512, "FlashInfer, deterministic"
F32, BF16 = torch.float32, torch.bfloat16
SHAPES = (
    *((F32, 4096, 32768), (F32, 4096, 8192), (F32, 64, 32768), (F32, 1, 262144)),
    *((BF16, 4096, 32768), (BF16, 4096, 8192)),
)
LIMITS = {(F32, 4096, 32768): 250.0, (F32, 64, 32768): 15.0, (F32, 1, 262144): 25.0}


def compilations() -> Iterator[Job]:
    """Yield what to compile beforehand: the kernels that the cases launch."""
    from lemmata.kernels.topk import Config, topk, topk_merge

    for threads in (256, 1024):
        yield to_disk, topk, Config(K, "float32", threads)
    yield to_disk, topk_merge, Config(K, "float32", 128)
    for threads in (256, 1024):
        yield to_disk, topk, Config(K, "bfloat16", threads)


def inputs(dtype: torch.dtype, rows: int, entries: int, device: str = "cuda") -> tuple[Tensor, Tensor]:
    """Return scores and the lengths of their rows."""
    scores = torch.randn(rows, entries, device=device, dtype=dtype)
    return scores, torch.full((rows,), entries, dtype=torch.int32, device=device)


def _ours(scores: Tensor, lengths: Tensor) -> Tensor:
    return torch.ops.lemmata.topk_fwd.default(scores, lengths, K)  # type: ignore[no-any-return]


def _torch(scores: Tensor, _: Tensor) -> Tensor:
    return scores.topk(K, sorted=False).indices


def _flashinfer(scores: Tensor, _: Tensor) -> Tensor:
    peer: Any = find("flashinfer")
    return peer.top_k(scores, K, deterministic=True, tie_break=peer.TopKTieBreak.SMALL)[1]  # type: ignore[no-any-return]


def require_indices(selected: Tensor, entries: int) -> None:
    """Raise where fewer than asked for are selected, or what is no index."""
    if not bool(((selected >= 0) & (selected < entries)).all()):
        raise RuntimeError(f"expected {K} indices of every row, got fewer")


def _agree(make: Callable[[], tuple[Tensor, Tensor]]) -> None:
    """Raise RuntimeError unless torch's selection differs among equal scores only, and FlashInfer's nowhere."""
    scores, lengths = make()
    ours, theirs = _ours(scores, lengths), _torch(scores, lengths)
    require_indices(ours, scores.shape[1])
    a, b = (scores.gather(1, indices.long()).sort(-1).values for indices in (ours, theirs))
    if not torch.equal(a, b):
        raise RuntimeError(f"expected the values of torch.topk, got others in {int((a != b).sum())} places")
    if find("flashinfer"):
        a, b = (indices.long().sort(-1).values for indices in (ours, _flashinfer(scores, lengths)))
        if not torch.equal(a, b):
            raise RuntimeError(f"expected the indices of FlashInfer, got others in {int((a != b).sum())} places")


def _case(dtype: torch.dtype, rows: int, entries: int) -> Case:
    make = functools.partial(inputs, dtype, rows, entries)

    def contender(op: Callable[..., Tensor]) -> Call:
        return functools.partial(op, *make())

    traffic = rows * (entries * dtype.itemsize + 4 + 4 * K)
    least, why = bound(bytes=traffic)
    limit = LIMITS.get((dtype, rows, entries))
    name = f"{'bf16' if dtype is BF16 else 'fp32'} {rows} x {entries}"
    ops = {"lemmata": _ours, "torch.topk": _torch} | ({PEER: _flashinfer} if find("flashinfer") else {})
    contenders = {n: functools.partial(contender, op) for n, op in ops.items()}
    absent = () if PEER in ops else (PEER,)
    return Case("topk", name, traffic, least, why, limit, contenders, absent, functools.partial(_agree, make))


def cases() -> Iterator[Case]:
    """Yield every shape."""
    for shape in SHAPES:
        yield _case(*shape)


@pytest.mark.parametrize("entries", [8192, 32768])
def test_eager_call(benchmark: BenchmarkFixture, entries: int) -> None:
    """Return what one call of the public function costs its caller, waiting for the device included."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    scores, lengths = inputs(F32, 8, entries, device)

    def step() -> None:
        topk(scores, k=K, lengths=lengths)
        if device == "cuda":
            torch.cuda.synchronize()

    step()
    benchmark.extra_info["device"] = device
    benchmark(step)
