"""What is claimed of the kernels of the indexer's loss is proved, and not of another formula."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("z3")

from lemmata.proofs import indexer_loss


def student() -> Any:
    """The claim of the student's kernel."""
    return next(proof for proof in indexer_loss.proofs() if proof.name.startswith("loss_student"))


def test_the_scores_are_the_references() -> None:
    assert student().run(layers=["L2", "range"]).holds


def test_other_scores_are_not_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    right = indexer_loss._scores
    monkeypatch.setattr(indexer_loss, "_scores", lambda q, k, weights, indices: right(q, k, weights + 1, indices))
    proof = student()
    assert proof.compare is not None
    assert not proof.run(layers=["L2"], fresh=True).holds
