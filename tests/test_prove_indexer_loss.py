"""What is claimed of the kernels of the indexer's loss is proved, and not of another formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("z3")

from lemmata.proofs import indexer_loss
from lemmata.proofs import indexer_loss_backward as gradients


def claim(kernel: str) -> Any:
    """The claim of a kernel."""
    return next(proof for proof in indexer_loss.proofs() if proof.name.startswith(kernel))


def student() -> Any:
    """The claim of the student's kernel."""
    return claim("loss_student")


def test_the_scores_are_the_references() -> None:
    assert student().run(layers=["L2", "range"]).holds


def test_other_scores_are_not_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    right = indexer_loss._scores
    monkeypatch.setattr(indexer_loss, "_scores", lambda q, k, weights, indices: right(q, k, weights + 1, indices))
    proof = student()
    assert proof.compare is not None
    assert not proof.run(layers=["L2"], fresh=True).holds


def test_the_gradients_are_the_references() -> None:
    assert claim("loss_bwd_listed").run(layers=["L2", "range"]).holds


@pytest.mark.parametrize("blocks", [1, 2])
def test_the_teacher_weighs_as_the_reference_does(blocks: int) -> None:
    proof = next(
        p for p in indexer_loss.proofs() if p.name.startswith("loss_teacher") and p.statics["blocks"] == blocks
    )
    assert proof.run(layers=["L2", "range"]).holds


def test_another_teacher_is_not_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that forgets the sink."""
    right = indexer_loss.reference.log_masses
    monkeypatch.setattr(
        indexer_loss.reference,
        "log_masses",
        lambda q, rows, sink, lse, *statics: right(q, rows, lse, lse, *statics),
    )
    assert not claim("loss_teacher").run(layers=["L2"], fresh=True).holds


OTHERS: dict[str, Callable[..., tuple[Any, Any, Any]]] = {
    "weights of 1": lambda grad, q, k, weights, indices: gradients._gradients(grad, q, k, weights * 0 + 1, indices),
    "the row before": lambda grad, q, k, weights, indices: gradients._gradients(grad, q, k, weights, indices - 1),
    "parts doubled": lambda *inputs: (*gradients._gradients(*inputs)[:2], gradients._gradients(*inputs)[2] * 2),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_other_gradients_are_not_proved(other: Callable[..., tuple[Any, Any, Any]]) -> None:
    of = gradients.compare(indexer_loss.Config(), indexer_loss.GRADIENTS, other)
    assert not replace(claim("loss_bwd_listed"), compare=of).run(layers=["L2"], fresh=True).holds
