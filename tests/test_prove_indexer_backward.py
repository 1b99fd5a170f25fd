"""The kernel of the gradients of q and the weights computes the reference's, and another reference's it does not."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("tilelang")

import torch

from lemmata.kernels.build import PASS_CONFIGS
from lemmata.kernels.indexer_backward import Config, indexer_scores_bwd_q
from lemmata.proofs.engine.verify import verify
from lemmata.proofs.indexer_backward import ACC, GRADS, KEYS, OF_QUERIES, TILES, compare, proofs
from lemmata.reference.indexer import indexer_scores_bwd
from test_kernel_names import occurring

KERNEL = indexer_scores_bwd_q(Config())
STATICS = {"H": 64, "D": 128, "ratio": 4}


def equal_to(reference: Any) -> Any:
    return verify(
        KERNEL,
        OF_QUERIES,
        statics=STATICS,
        compare=compare(Config(), reference),
        pass_configs=PASS_CONFIGS,
        layers=["L2"],
    )


def test_it_computes_the_gradients_of_the_reference() -> None:
    report = equal_to(indexer_scores_bwd)
    assert report.holds, report.failures
    assert report.layers[0].conditions == 26


def _later(grad: Any, q: Any, k: Any, weights: Any, offset: Any, ratio: int) -> Any:
    """What is seen a token later."""
    return indexer_scores_bwd(grad, q, k, weights, offset - 1, ratio)


def _weightless(grad: Any, q: Any, k: Any, weights: Any, offset: Any, ratio: int) -> Any:
    """The weights forgotten in the gradient of q."""
    of_q, of_k, of_weights = indexer_scores_bwd(grad, q, k, torch.ones_like(weights), offset, ratio)
    return of_q, of_k, of_weights


@pytest.mark.parametrize("wrong", [_weightless, pytest.param(_later, marks=pytest.mark.exhaustive)])
def test_it_computes_no_others(wrong: Any) -> None:
    report = equal_to(wrong)
    assert not report.holds
    assert report.failures


@pytest.mark.exhaustive  # the record of verdicts holds what it shows
@pytest.mark.parametrize("proof", [pytest.param(proof, id=proof.name) for proof in proofs()])
def test_every_kernel_that_ships_is_proved(proof: Any) -> None:
    report = proof.run(fresh=True)
    assert report.holds, report.failures
    assert [layer.name for layer in report.layers] == list(proof.layers)


def test_other_numbers_of_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="cfg: expected 64 heads, got 32"):
        compare(Config(32))


def test_the_names_that_it_binds_occur() -> None:
    assert {*ACC, TILES, KEYS, GRADS} <= occurring(KERNEL)
