"""What is claimed of the kernels of the indexer's loss is proved, and not of another formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("z3")

from lemmata.proofs import indexer_loss, indexer_loss_rows
from lemmata.proofs import indexer_loss_backward as gradients
from lemmata.proofs.engine.guards.mutate import candidates
from lemmata.proofs.engine.layers.comparison import symbolic_input


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


def of_rows(kernel: str, blocks: int = 1) -> Any:
    """The claim of a kernel of each query's row."""
    return next(p for p in indexer_loss.proofs() if p.name == f"{kernel} blocks={blocks}")


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("kernel", ["loss_rows", "loss_scores_bwd"])
def test_rows_are_the_references(kernel: str, blocks: int) -> None:
    report = of_rows(kernel, blocks).run(layers=["L2", "range"])
    assert report.holds
    assert {reason.rsplit(": ", 1)[1] for layer in report.layers for reason in layer.waived} == {
        indexer_loss_rows._PART
    }
    assert "assumed: the elements of log_mass, scores are finite, or -inf where the claim has them so" in [
        statement for layer in report.layers for statement in layer.statements
    ]


def exchanged(log_p: Any, log_s: Any) -> Any:
    return right_loss(log_s, log_p)


def of_every_slot(log_p: Any, log_s: Any) -> Any:
    """The loss with a slot that names no entry as one of weight 1."""
    return right_loss(torch.where(log_p > -math.inf, log_p, 0.0), log_s)


def of_the_teacher(grad_out: Any, log_p: Any, log_s: Any) -> Any:
    return right_gradient(grad_out, log_p, log_p)


right_loss, right_gradient = indexer_loss.reference.divergence, indexer_loss.reference.divergence_bwd


@pytest.mark.parametrize(
    ("kernel", "of", "wrong"),
    [
        ("loss_rows", "divergence", exchanged),
        ("loss_rows", "divergence", of_every_slot),
        ("loss_scores_bwd", "divergence_bwd", of_the_teacher),
    ],
)
def test_another_divergence_is_not_proved(
    kernel: str, of: str, wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexer_loss.reference, of, wrong)
    assert not of_rows(kernel).run(layers=["L2"], fresh=True).holds


def test_rows_all_of_which_are_listed_would_be_another_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted error of the claim: the reference reads numbers where the kernel may read -inf."""
    monkeypatch.setattr(indexer_loss_rows, "symbolic_input", lambda name, shape, **_: symbolic_input(name, shape))
    assert not of_rows("loss_rows").run(layers=["L2"], fresh=True).holds


@pytest.mark.parametrize(
    "named",
    [
        'dropped statement @ T.reduce(T.region(a[0], 1, 512), T.region(high_a[0], 2, 1), "max"',
        "dropped operand @ T.max(a[j], other) -> a[j], line 63",
    ],
)
def test_without_a_maximum_an_exponential_may_overflow(named: str) -> None:
    """Over the reals nothing changes."""
    proof = of_rows("loss_rows", 2)
    found = next(c for c in candidates(proof.kernel) if c.name.startswith(named))
    over_the_reals, in_range = replace(proof, kernel=found.make()).run(layers=["L2", "range"], fresh=True).layers
    assert over_the_reals.proved == over_the_reals.conditions
    assert in_range.proved < in_range.conditions
