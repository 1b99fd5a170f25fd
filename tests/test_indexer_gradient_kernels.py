"""The kernels of the backward of the indexer's scores, run by the interpreter."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from lemmata.kernels import indexer_backward
from lemmata.kernels.indexer_backward import Config, indexer_scores_bwd_k, indexer_scores_bwd_q
from lemmata.proofs import interpret
from lemmata.reference import indexer

run: Any = interpret
D = 32


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gradients(H: int, S: int, T: int, offset: int, splits: int = 1, scale: float = 1.0) -> list[tuple[Tensor, Tensor]]:
    """What the kernels write, and what the reference computes in fp64; the kernels' weights are scaled."""
    B, ratio = 2, 4
    q, k = normal(B, S, H, D, seed=0).bfloat16(), normal(B, T, D, seed=1).bfloat16()
    weights, at = normal(B, S, H, seed=2), torch.tensor([offset, 0]).int()
    seen = indexer.visible(at, S, ratio)
    grad = normal(B, S, T, seed=3).masked_fill(torch.arange(T) >= seen.unsqueeze(-1), torch.nan)
    for b in range(B):
        k[b, max(int(seen[b, -1]), 0) :] = torch.nan
    given = grad, q, k, weights * scale, at
    results = torch.full((B, S, H, D), torch.nan).bfloat16(), torch.full((B, S, H), torch.nan)
    sums = torch.full((B, splits, T, D), torch.nan)
    run(indexer_scores_bwd_q(Config(H, D, ratio)), *given, *results)
    run(indexer_scores_bwd_k(Config(H, D, ratio, splits)), *given, sums)
    want = indexer.indexer_scores_bwd(grad.double(), q.double(), k.double(), weights.double(), at, ratio)
    return [(results[0], want[0]), (sums.sum(1), want[1]), (results[1], want[2])]


@pytest.mark.parametrize(
    ("H", "S", "T", "offset", "splits"), [(8, 34, 70, 250, 2), (64, 5, 258, 1100, 1), (8, 3, 5, 0, 3), (16, 1, 7, 3, 1)]
)
def test_gradients_are_those_of_the_reference(H: int, S: int, T: int, offset: int, splits: int) -> None:
    for got, want in gradients(H, S, T, offset, splits):
        assert (got - want).norm() <= 2**-7 * want.norm()


def test_weights_that_are_wrong_are_noticed() -> None:
    of_q, of_k, of_weights = gradients(8, 3, 5, 19, scale=1.1)
    assert (of_q[0] - of_q[1]).norm() > 2**-5 * of_q[1].norm()
    assert (of_k[0] - of_k[1]).norm() > 2**-5 * of_k[1].norm()
    assert (of_weights[0] - of_weights[1]).norm() < 2**-7 * of_weights[1].norm(), (
        "they have no say in their own gradient"
    )


@pytest.mark.parametrize("workspace", [1, 2**20])
def test_the_backward_as_on_a_gpu(workspace: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher with both kernels interpreted, a sequence at a time and all at once."""
    monkeypatch.setattr(indexer_backward, "build", lambda factory, cfg: functools.partial(run, factory(cfg)))
    monkeypatch.setattr(indexer_backward, "WORKSPACE", workspace)
    B, S, T, H = 3, 33, 9, 8
    tensors = normal(B, S, T, seed=0), normal(B, S, H, D, seed=1).bfloat16(), normal(B, T, D, seed=2).bfloat16()
    rest = normal(B, S, H, seed=3), torch.tensor([0, 5, 100]).int()
    assert indexer_backward.choose(S, T, H, D, 4).splits == 1
    got = indexer_backward.scores_bwd(*tensors, *rest, 4)
    want = indexer.indexer_scores_bwd(*(x.double() for x in (*tensors, rest[0])), rest[1], 4)
    for a, b in zip(got, want, strict=True):
        assert (a - b).norm() <= 2**-7 * b.norm()


def test_the_batch_has_no_say_in_the_splits_and_there_are_blocks_enough() -> None:
    splits = {T: indexer_backward.choose(4096, T, 64, 128, 4).splits for T in (1, 256, 8192, 32768, 2**18)}
    assert splits == {1: 8, 256: 8, 8192: 8, 32768: 2, 2**18: 1}
    assert indexer_backward.choose(1, 2**10, 64, 128, 4).splits == 1
