"""The kernels of the indexer's loss over all that a query sees, and what launches them, run by the interpreter."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from lemmata.bindings import dense_loss
from lemmata.kernels import indexer, indexer_backward, indexer_loss_rows
from lemmata.kernels import indexer_loss as kernels
from lemmata.proofs import interpret
from lemmata.reference import indexer_loss

INF, NAN = float("inf"), float("nan")
RATIO, SCALE = 4, 0.1
OFFSETS = torch.tensor([-1, 65]).int()  # so that a query sees nothing, a few, or all but one of 18 entries
SHAPES = [(8, 32, 8, 64), (64, 128, 128, 128), (16, 64, 16, 192)]  # H, D, core_H, core_D


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpret what would be built for a GPU."""
    run: Any = interpret

    def build(factory: Any, cfg: Any) -> Any:
        return functools.partial(run, factory(cfg))

    for module in (kernels, indexer_backward, indexer_loss_rows):
        monkeypatch.setattr(module, "build", build)
    monkeypatch.setattr(
        indexer,
        "_plan",
        lambda h, d, ratio, chunk: build(indexer.indexer_scores, indexer.Config(h, d, ratio, chunk=chunk)),
    )


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def case(H: int, D: int, core_H: int, core_D: int, S: int = 5, T: int = 18) -> list[Tensor]:
    """The tensors of a call; the last entry holds NaN, and no query sees it."""
    q, k = normal(2, S, H, D, seed=0).bfloat16(), normal(2, T, D, seed=1).bfloat16()
    core_q, entries = normal(2, S, core_H, core_D, seed=2).bfloat16(), normal(2, T, core_D, seed=3).bfloat16()
    k[:, -1], entries[:, -1] = NAN, NAN
    weights, sink, lse = normal(2, S, H, seed=5) / (H * D) ** 0.5, normal(core_H, seed=6), normal(2, S, core_H, seed=7)
    return [q, k, weights, core_q, entries, sink, lse + 3, OFFSETS]


def results(x: list[Tensor], grad: Tensor) -> list[Tensor]:
    """The loss and its gradients."""
    return [dense_loss.forward(*x, RATIO, SCALE), *dense_loss.backward(grad, *x, RATIO, SCALE)]


def wanted(x: list[Tensor], grad: Tensor) -> list[Tensor]:
    """The reference's in fp64, of numbers without NaN, which plain torch would multiply by 0."""
    wide = [t.double().nan_to_num(0.0, INF, -INF) if t.is_floating_point() else t for t in x]
    statics = RATIO, SCALE
    return [
        indexer_loss.indexer_loss_dense(*wide, *statics),
        *indexer_loss.indexer_loss_dense_bwd(grad.double(), *wide, *statics),
    ]


def far(got: Tensor, want: Tensor) -> float:
    """How far two results are apart, relative to the second."""
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("shape", SHAPES)
def test_results_are_those_of_the_reference(shape: tuple[int, ...]) -> None:
    x, grad = case(*shape), normal(2, 5, seed=8)
    (loss, *grads), (want, *want_grads) = results(x, grad), wanted(x, grad)
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-5)
    assert (want[0] == 0).any()
    assert (want > 1e-2).any()
    for a, b, like in zip(grads, want_grads, x, strict=False):
        assert a.dtype is like.dtype
        assert a.isfinite().all()
        assert far(a, b) <= 2**-7


@pytest.mark.parametrize("at", range(8))
def test_each_argument_has_its_say(at: int) -> None:
    x, grad = case(8, 32, 8, 64), normal(2, 5, seed=8)
    other = [t.roll(1, min(t.ndim, 2) - 1) if n == at else t for n, t in enumerate(x)]
    assert not far(dense_loss.forward(*other, RATIO, SCALE), wanted(x, grad)[0]) <= 1e-3


def test_a_query_without_a_teacher_has_no_loss() -> None:
    x, grad = case(8, 32, 128, 64), normal(2, 5, seed=8)
    x[5][0], x[6][1, 3] = INF, INF
    got, want = results(x, grad), wanted(x, grad)
    for a, b in zip(got, want, strict=True):
        assert far(a, b) <= 2**-7
    assert (got[0][1, 3] == 0) & (got[1][1, 3] == 0).all() & (got[3][1, 3] == 0).all()


def test_chunks_of_queries_and_other_sequences_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of the keys may be rounded otherwise in other chunks, and is as exact."""
    x, grad = case(8, 32, 8, 64), normal(2, 5, seed=8)
    loss, of_q, of_k, of_weights = results(x, grad)
    monkeypatch.setattr(dense_loss, "_WORKSPACE", 3 * 4 * 4 * 18)
    chunked = results(x, grad)
    for a, b in zip(chunked, (loss, of_q, of_k, of_weights), strict=True):
        assert torch.equal(a, b) or b is of_k
    assert far(chunked[2], wanted(x, grad)[2]) <= 2**-7
    alone = results([t if n == 5 else t[1:] for n, t in enumerate(x)], grad[1:])
    for a, b in zip(alone, chunked, strict=True):
        assert torch.equal(a, b[1:])
