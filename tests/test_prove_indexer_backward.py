"""The kernels of the backward of the indexer's scores compute the reference's gradients, and no other reference's."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

pytest.importorskip("tilelang")

from lemmata.kernels.build import PASS_CONFIGS
from lemmata.kernels.indexer_backward import Config, indexer_scores_bwd_k, indexer_scores_bwd_q
from lemmata.proofs import indexer_backward, indexer_backward_keys
from lemmata.proofs.engine.guards.mutate import candidates
from lemmata.proofs.engine.verify import verify
from lemmata.proofs.indexer_backward import OF_QUERIES, proofs
from lemmata.proofs.indexer_backward_keys import OF_KEYS
from lemmata.reference.contract import Contract
from lemmata.reference.indexer import indexer_scores_bwd
from test_kernel_names import occurring

STATICS = {"H": 64, "D": 128, "ratio": 4}


class Case(NamedTuple):
    """A kernel, what is compared with the reference, and how many conditions there are."""

    kernel: Any
    contract: Contract
    compare: Any
    cfg: Config
    conditions: int

    def verified(self, reference: Any = indexer_scores_bwd, kernel: Any = None) -> Any:
        return verify(
            kernel or self.kernel,
            self.contract,
            statics=STATICS | ({"splits": self.cfg.splits} if "splits" in self.contract.statics else {}),
            compare=self.compare(self.cfg, reference),
            pass_configs=PASS_CONFIGS,
            layers=["L2"],
        )


OF_Q = Case(indexer_scores_bwd_q(Config()), OF_QUERIES, indexer_backward.compare, Config(), 26)
OF_K = Case(indexer_scores_bwd_k(Config(splits=8)), OF_KEYS, indexer_backward_keys.compare, Config(splits=8), 19)
BOTH = pytest.mark.parametrize("case", [pytest.param(OF_Q, id="q"), pytest.param(OF_K, id="k")])


@BOTH
def test_it_computes_the_gradients_of_the_reference(case: Case) -> None:
    report = case.verified()
    assert report.holds, report.failures
    assert report.layers[0].conditions == case.conditions


def _later(grad: Any, q: Any, k: Any, weights: Any, offset: Any, ratio: int) -> Any:
    """What is seen a token later."""
    return indexer_scores_bwd(grad, q, k, weights, offset - 1, ratio)


def _weightless(grad: Any, q: Any, k: Any, weights: Any, offset: Any, ratio: int) -> Any:
    """The weights forgotten in the gradients of q and k."""
    return indexer_scores_bwd(grad, q, k, weights * 0 + 1, offset, ratio)


@pytest.mark.parametrize(
    ("case", "wrong"),
    [
        pytest.param(OF_K, _weightless, id="k-weightless"),
        *(pytest.param(OF_Q, wrong, marks=pytest.mark.exhaustive) for wrong in (_weightless, _later)),
        pytest.param(OF_K, _later, marks=pytest.mark.exhaustive),
    ],
)
def test_it_computes_no_others(case: Case, wrong: Any) -> None:
    report = case.verified(wrong)
    assert {failure.kind for failure in report.failures} == {"equivalence"}


def test_a_gradient_that_is_not_linear_is_refused() -> None:
    """The sums of the splits would not be the gradient."""

    def affine(*given: Any, ratio: int) -> Any:
        of_q, of_k, of_weights = indexer_scores_bwd(*given, ratio=ratio)
        return of_q, of_k + 1, of_weights

    linear = indexer_backward_keys._linear
    assert linear(Config(), indexer_scores_bwd).holds
    assert not linear(Config(), affine).holds


PLANTED = {
    "a split with queries of those before": "T.max(iterations * by // 8, oldest // 2) -> oldest // 2,",
    "the sums of another split": "sums[bz, by, entry, d] = ... -> sums[bz, by + 1, entry, d]",
    "queries skipped that see an entry": "constant @ oldest // 2 -> T.FloorDiv(oldest, 1)",
}


@pytest.mark.parametrize("error", PLANTED)
def test_planted_errors_of_the_splits_are_refuted(error: str) -> None:
    wrong = next(m.make() for m in candidates(OF_K.kernel) if PLANTED[error] in m.name)
    assert {failure.kind for failure in OF_K.verified(kernel=wrong).failures} == {"equivalence"}


@pytest.mark.exhaustive  # the record of verdicts holds what it shows
@pytest.mark.parametrize("proof", [pytest.param(proof, id=proof.name) for proof in proofs()])
def test_every_kernel_that_ships_is_proved(proof: Any) -> None:
    report = proof.run(fresh=True)
    assert report.holds, report.failures
    assert [layer.name for layer in report.layers] == proof.claimed()


@BOTH
def test_other_numbers_of_heads_are_refused(case: Case) -> None:
    with pytest.raises(ValueError, match="cfg: expected 64 heads, got 32"):
        case.compare(Config(32))


def test_the_names_that_they_bind_occur() -> None:
    q, k = indexer_backward, indexer_backward_keys
    assert {*q.ACC, q.TILES, q.KEYS, q.GRADS} <= occurring(OF_Q.kernel)
    assert {*k.ACC, k.TILES, k.QUERIES, k.GRADS, k.WEIGHTS} <= occurring(OF_K.kernel)
