"""What only top-k needs: ties, special values, merging of shards, long rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import lemmata
from opspec import array
from specs_topk import TOPK, oracle

INF, NAN = float("inf"), float("nan")
FEW = (0.0, -0.0, 1.0, -1.0, INF, -INF, NAN, 3.0)
BITS = (
    0x7FC00000,
    0xFFC00000,
    0x7F800001,
    0x00000001,
    0x80000001,
    0x7F7FFFFF,
    0xFF7FFFFF,
)  # NaNs, subnormals, extremes


@pytest.fixture(scope="module", autouse=True)
def checked() -> Iterator[None]:
    """Every selection here goes through the checker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEMMATA_CHECK", "1")
        yield


def few(rows: int, width: int, seed: int, values: tuple[float, ...] = FEW) -> Tensor:
    choice = torch.randint(len(values), (rows, width), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(values)[choice]


def check(scores: Tensor, lengths: Tensor, k: int, op: Callable[..., Tensor] = lemmata.topk) -> bool:
    """Whether the answer is the oracle's, bit for bit."""
    got = op(scores, lengths=lengths, k=k)
    assert got.dtype is torch.int32
    return bool(np.array_equal(array(got), oracle(array(scores), array(lengths), k)))


@st.composite
def rows(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """Rows of few values, so that ties lie across the cut; of one value; of no valid one; shorter than k."""
    width, count = draw(st.integers(1, 70)), draw(st.integers(1, 4))
    values = draw(st.sampled_from([FEW, FEW[:2], (1.0,), (NAN,), (-INF, NAN), (2.0, 1.0), (INF, -INF)]))
    scores = few(count, width, draw(st.integers(0, 2**16)), values)
    lengths = draw(
        st.lists(st.sampled_from((0, -1, -(2**31), 1, width - 1, width, width + 1, 2**31 - 1)), min_size=count)
    )
    return scores, torch.tensor(lengths[:count], dtype=torch.int32), draw(st.sampled_from((1, 2, 3, 8, 33, 64, 71)))


@given(case=rows(), dtype=st.sampled_from((torch.float32, torch.bfloat16)))
def test_rows_of_few_values(device: torch.device, case: tuple[Tensor, Tensor, int], dtype: torch.dtype) -> None:
    scores, lengths, k = case
    assert check(scores.to(device, dtype), lengths.to(device), k)


def test_the_ties_of_torch_would_not_pass(device: torch.device) -> None:
    def unstable(scores: Tensor, lengths: Tensor, k: int) -> Tensor:
        return scores.flip(-1).topk(k).indices.sort(-1).values.int()

    scores, lengths = few(64, 70, 0, (1.0, 0.0)).to(device), torch.full((64,), 70, dtype=torch.int32, device=device)
    assert check(scores, lengths, 8)
    assert not check(scores, lengths, 8, unstable)


def test_every_kind_of_bits(device: torch.device) -> None:
    bits = np.array(BITS, dtype=np.uint32).astype(np.int64)
    choice = torch.randint(len(bits), (33, 70), generator=torch.Generator().manual_seed(0))
    scores = torch.tensor(np.where(bits >= 2**31, bits - 2**32, bits), dtype=torch.int32)[choice].view(torch.float32)
    lengths = torch.full((33,), 70, dtype=torch.int32)
    for k in (1, 5, 30, 70):
        assert check(scores.to(device), lengths.to(device), k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_rows(device: torch.device, dtype: torch.dtype) -> None:
    scores = torch.randn(9, 5000, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    lengths = torch.tensor([5000, 4999, 513, 512, 511, 1, 0, 2048, 4096], dtype=torch.int32, device=device)
    for k in (1, 512, 2048):
        assert check(scores, lengths, k)
        assert not check(scores, lengths, k, lambda s, lengths, k: lemmata.topk(s, k=k)), "lengths ignored went unseen"


def test_the_longest_row(device: torch.device) -> None:
    scores = few(1, 2**20, 1).to(device)
    for k in (1, 2048):
        assert check(scores, torch.tensor([2**20], dtype=torch.int32, device=device), k)


def test_without_lengths_a_row_is_whole(device: torch.device) -> None:
    scores = few(9, 70, 2).to(device)
    whole = torch.full((9,), 70, dtype=torch.int32, device=device)
    assert torch.equal(lemmata.topk(scores, k=20), lemmata.topk(scores, k=20, lengths=whole))
    assert (lemmata.topk(scores[:, :0], k=20) == -1).all()


@given(width=st.integers(1, 70), more=st.integers(1, 40), k=st.sampled_from((1, 7, 64)), seed=st.integers(0, 999))
def test_padding_changes_nothing(device: torch.device, width: int, more: int, k: int, seed: int) -> None:
    scores = few(3, width, seed).to(device)
    lengths = torch.full((3,), width, dtype=torch.int32, device=device)
    expected = lemmata.topk(scores, k=k)
    anything = torch.cat([scores, few(3, more, seed + 1).to(device)], -1)
    assert torch.equal(lemmata.topk(anything, k=k, lengths=lengths), expected)
    nothing = torch.cat([scores, few(3, more, seed + 1, (NAN, -INF)).to(device)], -1)
    assert torch.equal(lemmata.topk(nothing, k=k), expected)


@given(cut=st.integers(0, 70), k=st.sampled_from((1, 7, 33)), seed=st.integers(0, 999))
def test_the_largest_of_the_shards_largest(device: torch.device, cut: int, k: int, seed: int) -> None:
    scores = few(3, 70, seed).to(device)
    left, right = lemmata.topk(scores[:, :cut], k=k), lemmata.topk(scores[:, cut:], k=k)
    candidates = torch.cat([left, torch.where(right >= 0, right + cut, -1)], -1).long()
    values = torch.where(candidates >= 0, scores.gather(-1, candidates.clamp(0)), -INF)
    of_these = lemmata.topk(values, k=k).long()
    merged = torch.where(of_these >= 0, candidates.gather(-1, of_these.clamp(0)), -1)
    assert torch.equal(merged.int(), lemmata.topk(scores, k=k))


def test_checked_mode(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = few(9, 70, 3).to(device)
    right = lemmata.topk(scores, k=5)
    monkeypatch.setenv("LEMMATA_CHECK", "1")
    assert torch.equal(lemmata.topk(scores, k=5), right)
    wrong = right.clone()
    wrong[4, -1] += 1
    monkeypatch.setattr("lemmata.bindings.topk._fwd", lambda *_: wrong)
    with pytest.raises(RuntimeError, match=r"topk: result: expected the largest of every row, got others in row \[4\]"):
        lemmata.topk(scores, k=5)
    monkeypatch.setenv("LEMMATA_CHECK", "0")
    assert lemmata.topk(scores, k=5) is wrong


@given(case=rows(), column=st.integers(0, 70), other=st.integers(-2, 71))
def test_the_checker_accepts_the_answer_and_nothing_else(
    device: torch.device, case: tuple[Tensor, Tensor, int], column: int, other: int
) -> None:
    scores, lengths, k = (t.to(device) if isinstance(t, Tensor) else t for t in case)
    accepts = torch.ops.lemmata.topk_check.default
    right = lemmata.topk(scores, k=k, lengths=lengths)
    assert accepts(scores, lengths, right).all()
    changed = right.clone()
    changed[:, column % k] = other
    same = (changed == right).all(-1)
    assert torch.equal(accepts(scores, lengths, changed) == 1, same)


@pytest.mark.gpu
def test_the_longest_rows_against_a_stable_sort() -> None:
    scores = few(8, 2**20, 4).to("cuda")
    for values in (scores, scores.nan_to_num(0.0), torch.randn(8, 2**20, device="cuda").bfloat16()):
        lengths = torch.full((8,), 2**20 - 3, dtype=torch.int32, device="cuda")
        for k in (1, 512, 2048):
            assert torch.equal(lemmata.topk(values, k=k, lengths=lengths), TOPK.reference(values, lengths, k))


@pytest.mark.gpu
def test_rows_beyond_two_to_the_31_elements() -> None:
    scores = torch.zeros(2**11 + 3, 2**20, dtype=torch.bfloat16, device="cuda")
    scores[-3:] = torch.randn(3, 2**20, device="cuda")
    got = lemmata.topk(scores, k=512)
    assert torch.equal(got[-3:], lemmata.topk(scores[-3:].clone(), k=512))
    assert torch.equal(got[0], torch.arange(512, dtype=torch.int32, device="cuda"))
