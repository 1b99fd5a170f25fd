"""What indexer_topk does around its kernels on a GPU, run on a CPU: the kernels are replaced by the references."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from inputs import make
from lemmata.bindings import chunks
from lemmata.bindings import indexer as indexer_bindings
from lemmata.bindings import indexer_ops as bindings
from lemmata.reference import indexer, topk
from specs_indexer import INDEXER_TOPK

K = 5
held: list[int] = []  # the scores that each launch holds


def scores_kernel(*inputs: Any) -> Tensor:
    assert all(t.is_contiguous() for t in inputs[:3]), "a copy would take memory that no workspace counts"
    out = indexer.indexer_scores_fp8(*inputs) if len(inputs) == 6 else indexer.indexer_scores(*inputs)
    held.append(out.numel())
    return out


def topk_kernel(scores: Tensor, positions: Tensor, k: int, ratio: int) -> Tensor:
    assert positions.dtype is torch.int32
    assert positions.shape == scores.shape[:1]
    lengths = ((positions + 1) // ratio).clamp(0, scores.shape[1])
    short = (lengths <= k).unsqueeze(-1)
    return torch.where(short, indexer.everything(lengths, k), topk.topk(scores, lengths, k)).unsqueeze(1)


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("_scores_kernel", "_fp8_kernel"):
        monkeypatch.setattr(bindings, name, scores_kernel)
    monkeypatch.setattr(bindings, "_topk_kernel", topk_kernel)
    yield
    held.clear()


def inputs(B: int, S: int, T: int, seed: int, fp8: bool) -> list[Tensor | None]:
    sizes = {"B": B, "S": S, "T": T}
    q, k, weights, k_scale, _ = make(INDEXER_TOPK.contract, INDEXER_TOPK.configurations[0], sizes, seed).tensors
    return [q, k, weights, k_scale] if fp8 else [q.bfloat16(), k.bfloat16(), weights, None]


@given(
    B=st.integers(1, 4),
    S=st.integers(1, 9),
    T=st.sampled_from((1, 4, 5, 6, 35)),
    offset=st.sampled_from((0, 1, 22, 23, 24, 200)),
    rows=st.sampled_from((0, 1, 2, 3, 8, 100)),
    known=st.booleans(),
    fp8=st.booleans(),
)
def test_any_workspace_gives_the_reference(
    B: int, S: int, T: int, offset: int, rows: int, known: bool, fp8: bool
) -> None:
    tensors = inputs(B, S, T, seed=offset + T, fp8=fp8)
    assert isinstance(tensors[0], Tensor)
    unscored = indexer_bindings._unscored(S, offset, 4, K) if known else 0
    at = torch.full((B,), offset, dtype=torch.int32)
    workspace = max(rows * 4 * (T + 2 * K + 2), 1)
    held.clear()
    got = bindings._select_cuda(*tensors, at, 4, K, workspace, unscored)  # type: ignore[arg-type]
    assert torch.equal(got, indexer.indexer_topk(*tensors, at, 4, K))  # type: ignore[arg-type]
    assert torch.equal(got, chunks.select(*tensors, at, 4, K, workspace, unscored))  # type: ignore[arg-type]
    assert max(held, default=0) <= max(rows, 1) * T, "more scores at a time than the workspace holds"
    assert not held or T > K, "scores of entries that are taken anyway"


@pytest.mark.parametrize(("heads", "width", "filled"), [(16, 128, 32), (32, 64, 64), (64, 128, 64), (8, 32, 8)])
def test_heads_are_filled_up_where_the_backward_does_not_compile(
    heads: int, width: int, filled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def kernel(*given: Any) -> tuple[Tensor, ...]:
        seen.append(given[1].shape[2])
        return indexer.indexer_scores_bwd(*given)

    monkeypatch.setattr(bindings, "_bwd_kernel", kernel)
    generator = torch.Generator().manual_seed(0)
    grad, k, weights = (torch.randn(2, *n, generator=generator) for n in ((3, 9), (9, width), (3, heads)))
    q = torch.randn(2, 3, heads, width, generator=generator).bfloat16()
    given = grad, q, k.bfloat16(), weights, torch.tensor([30, 2]).int(), 4
    for got, want in zip(bindings._scores_bwd_cuda(*given), indexer.indexer_scores_bwd(*given), strict=True):
        assert got.is_contiguous()
        torch.testing.assert_close(got, want)
    assert seen == [filled]


def test_parts_are_of_about_one_size() -> None:
    q = torch.empty(1, 4096, 1, 1)
    sizes = [s.stop - s.start for _, s in chunks.groups(q, 0, 1985)]
    assert sizes == [1366, 1366, 1364]
    q = torch.empty(128, 3, 1, 1)
    assert [b.stop - b.start for b, _ in chunks.groups(q, 0, 100)] == [33, 33, 33, 29]
    assert not list(chunks.groups(q, 3, 100)), "all are unscored"


def test_a_wrong_order_of_parts_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = chunks.groups
    monkeypatch.setattr(chunks, "groups", lambda *a: [(b, slice(0, s.stop - s.start)) for b, s in right(*a)])
    tensors = inputs(1, 9, 35, seed=1, fp8=True)
    at = torch.full((1,), 200, dtype=torch.int32)
    got = bindings._select_cuda(*tensors, at, 4, K, 3 * 4 * (35 + 2 * K + 2), 0)  # type: ignore[arg-type]
    assert not torch.equal(got, indexer.indexer_topk(*tensors, at, 4, K))  # type: ignore[arg-type]
