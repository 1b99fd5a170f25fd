"""The kernels of the indexer's loss over listed entries, and what launches them, run by the interpreter."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from lemmata.bindings import gradients, listed_loss
from lemmata.kernels import gradient_sums, indexer_loss_backward, indexer_loss_rows
from lemmata.kernels import indexer_loss as kernels
from lemmata.proofs import interpret
from lemmata.reference import csa, indexer_loss

run: Any = interpret
INF, NAN = float("inf"), float("nan")
SCALE = 0.1
SHAPES = [(8, 32, 8, 64, 130), (64, 128, 128, 128, 70), (16, 64, 16, 192, 1)]  # H, D, core_H, core_D, K


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpret what would be built for a GPU; ``sum_listed`` adds to what its output holds."""

    def build(factory: Any, cfg: Any) -> Any:
        outputs = {"outputs": ()} if factory is gradient_sums.sum_listed else {}
        return functools.partial(run, factory(cfg), **outputs)

    for module in (kernels, indexer_loss_backward, indexer_loss_rows, gradient_sums):
        monkeypatch.setattr(module, "build", build)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def case(H: int, D: int, core_H: int, core_D: int, K: int, B: int = 2, S: int = 3, T: int = 70) -> list[Tensor]:
    """The tensors of a call, with indices that name no entry, and rows that hold NaN and are named by none."""
    q, k = normal(B, S, H, D, seed=0).bfloat16(), normal(B, T, D, seed=1).bfloat16()
    core_q, entries = normal(B, S, core_H, core_D, seed=2).bfloat16(), normal(B, T, core_D, seed=3).bfloat16()
    indices = torch.randint(-3, T + 3, (B, S, K), generator=torch.Generator().manual_seed(4)).int()
    indices[indices == 5] = -7
    k[:, 5], entries[:, 5] = NAN, NAN
    weights, sink, lse = normal(B, S, H, seed=5) / (H * D) ** 0.5, normal(core_H, seed=6), normal(B, S, core_H, seed=7)
    return [q, k, weights, core_q, entries, indices, sink, lse + 3]


def wide(tensors: list[Tensor]) -> list[Tensor]:
    """The same in fp64, without NaN, which plain torch would multiply by 0."""
    return [t.double().nan_to_num(0.0, INF, -INF) if t.is_floating_point() else t for t in tensors]


@pytest.mark.parametrize("shape", SHAPES)
def test_losses_are_those_of_the_reference(shape: tuple[int, ...]) -> None:
    x = case(*shape)
    got, want = listed_loss.forward(*x, SCALE), indexer_loss.indexer_loss(*wide(x), SCALE)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    assert (want > 1e-2).any() or shape[-1] == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_the_reference(shape: tuple[int, ...]) -> None:
    x, grad = case(*shape), normal(2, 3, seed=8)
    got = listed_loss.backward(grad, *x, SCALE)
    for a, b in zip(got, indexer_loss.indexer_loss_bwd(grad.double(), *wide(x), SCALE), strict=True):
        assert a.isfinite().all()
        assert (a - b).norm() <= 2**-7 * b.norm()


@pytest.mark.parametrize("at", range(8))
def test_each_argument_has_its_say(at: int) -> None:
    x = case(8, 32, 8, 64, 20, B=1)
    other = [t.roll(1, min(t.ndim, 2) - 1) if n == at else t for n, t in enumerate(x)]
    want = indexer_loss.indexer_loss(*wide(x), SCALE)
    assert (listed_loss.forward(*other, SCALE) - want).abs().max() > 1e-3


def special(x: list[Tensor]) -> list[Tensor]:
    """Heads that teach nothing, a query that none teaches, one without a candidate, one with a single one."""
    *others, indices, sink, lse = (t.clone() for t in x)
    sink[0], sink[1], lse[0, 0, 2], lse[0, 1] = INF, -INF, INF, INF
    indices[1, 0] = -1
    indices[1, 1], indices[1, 1, -1] = 70, 3
    return [*others, indices, sink, lse]


def test_special_values() -> None:
    x, grad = special(case(8, 32, 128, 64, 20)), normal(2, 3, seed=8)
    out, want = listed_loss.forward(*x, SCALE), indexer_loss.indexer_loss(*wide(x), SCALE)
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-5)
    assert (out[[0, 1, 1], [1, 0, 1]] == 0).all()
    for a, b in zip(
        listed_loss.backward(grad, *x, SCALE),
        indexer_loss.indexer_loss_bwd(grad.double(), *wide(x), SCALE),
        strict=True,
    ):
        assert (a - b).norm() <= 2**-7 * b.norm()
        if a.shape[:2] == (2, 3):
            assert (a[[0, 1, 1], [1, 0, 1]] == 0).all()


def test_a_candidate_that_is_nan_spoils_its_queries_alone() -> None:
    x = case(8, 32, 8, 64, 20)
    x[5][x[5] >= 70] = -1
    clean = listed_loss.forward(*x, SCALE)
    for at in (1, 4):
        spoiled = [t.clone() for t in x]
        row = x[5].max()
        spoiled[at][:, row] = NAN
        out, named = listed_loss.forward(*spoiled, SCALE), (x[5] == row).any(-1)
        assert named.any()
        assert not named.all()
        assert at == 4 or out[named].isnan().all()
        assert torch.equal(out[~named], clean[~named])


@pytest.mark.parametrize("bytes_held", [1, 2**12])
def test_the_workspace_changes_no_bit(bytes_held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, grad = case(8, 32, 8, 64, 20), normal(2, 3, seed=8)
    whole = [listed_loss.forward(*x, SCALE), *listed_loss.backward(grad, *x, SCALE)]
    monkeypatch.setattr(listed_loss, "_WORKSPACE", bytes_held)
    monkeypatch.setattr(gradients, "WORKSPACE", bytes_held)
    for a, b in zip([listed_loss.forward(*x, SCALE), *listed_loss.backward(grad, *x, SCALE)], whole, strict=True):
        assert torch.equal(a, b)


def test_strides_change_no_bit() -> None:
    x, grad = case(8, 32, 8, 64, 20), normal(2, 3, seed=8)
    spread = [t.mT.contiguous().mT if t.ndim > 1 else t for t in x]
    assert not spread[0].is_contiguous()
    for a, b in zip(
        [listed_loss.forward(*spread, SCALE), *listed_loss.backward(grad, *spread, SCALE)],
        [listed_loss.forward(*x, SCALE), *listed_loss.backward(grad, *x, SCALE)],
        strict=True,
    ):
        assert torch.equal(a, b)


def test_parts_of_a_row_are_those_of_its_slots() -> None:
    """The kernel of the gradients alone, on gradients of scores that are any."""
    x = case(8, 64, 8, 64, 130)
    q, k, weights, indices = x[0], x[1], x[2], x[5]
    keys = csa._selected(k.double().nan_to_num(0.0), indices)
    grad = torch.where(keys.seen, normal(2, 3, 130, seed=8), 0.0)
    of_q, of_rows, of_weights = indexer_loss.scores_bwd(grad.double(), q.double(), weights.double(), keys)
    got = indexer_loss_backward.gradients(grad, q, k, weights, indices)
    for a, b in zip(got, (of_q, of_weights, of_rows.unsqueeze(3)), strict=True):
        assert (a - b).norm() <= 2**-7 * b.norm()
    assert (got[1] - of_weights).norm() <= 1e-5 * of_weights.norm(), "in fp32 throughout"


def test_a_call_without_work_is_left_to_the_reference() -> None:
    x = case(8, 32, 8, 64, 20)
    assert not listed_loss.idle(*x, SCALE)
    for at, cut in ((5, x[5][..., :0]), (1, x[1][:, :0]), (0, x[0][:0])):
        assert listed_loss.idle(*(cut if n == at else t for n, t in enumerate(x)), SCALE)
