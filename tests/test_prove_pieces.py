"""How the kernels of a call of top-k follow one another: its theorems need all they suppose, and a wrong call is noticed."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest

from lemmata.kernels import topk as select
from lemmata.proofs import topk_pieces
from lemmata.proofs.engine.base.conditions import Condition
from lemmata.proofs.engine.layers.lemmas import Theorem
from lemmata.proofs.engine.smt.solve import solve
from lemmata.proofs.topk_pieces import COMPOSED

CONDITIONS = [
    pytest.param(condition, id=f"{theorem.name}-{number}")
    for theorem in COMPOSED
    if isinstance(theorem, Theorem)
    for number, condition in enumerate(theorem.conditions())
]


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_step_holds_and_needs_all_that_it_supposes(condition: Condition) -> None:
    assert solve(condition).verdict == "proved"
    for n in range(len(condition.hypotheses)):
        less = condition.hypotheses[:n] + condition.hypotheses[n + 1 :]
        assert solve(replace(condition, hypotheses=less)).verdict == "refuted", condition.hypotheses[n]


def test_calls_give_the_first_k() -> None:
    held, seen = topk_pieces._tried()
    assert held
    assert seen == "7 calls, of one kernel to four"


def _descending(*tensors: Any) -> None:
    _RIGHT(*tensors)
    out = tensors[3]
    out.copy_(out.flip(-1))


def _one_too_few(*tensors: Any) -> None:
    _RIGHT(*tensors)
    tensors[3][..., -1] = -1


_RIGHT = topk_pieces._as_claimed


@pytest.mark.parametrize("wrong", [_descending, _one_too_few])
def test_kernels_that_leave_something_else_are_noticed(monkeypatch: pytest.MonkeyPatch, wrong: Any) -> None:
    """Planted: pieces listed by falling index, or without their last entry."""
    monkeypatch.setattr(topk_pieces, "_as_claimed", wrong)
    assert not topk_pieces._tried()[0]


def test_a_plan_of_too_few_pieces_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: half of a row's pieces are left out."""
    plan = select._plan

    @functools.cache
    def halved(*sizes: Any) -> list[select.Step]:
        return [step._replace(pieces=-(-step.pieces // 2)) for step in plan(*sizes)]

    monkeypatch.setattr(select, "_plan", halved)
    with pytest.raises(ValueError, match=r"^out: expected a piece for every 32768 of 32769, got \(3, 1, 512\)"):
        topk_pieces._tried()
