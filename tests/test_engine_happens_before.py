"""Layer 1, races, where warps have roles: what is asked of the kernels of verdicts/roles, and a barrier of two roles."""

from __future__ import annotations

import pytest

from engine_verdicts import hypotheses, kinds, outcomes
from lemmata.kernels.build import PASS_CONFIGS
from lemmata.kernels.hca import hca_fwd
from lemmata.kernels.sparse_attention_config import Config
from lemmata.proofs import hca
from lemmata.proofs.engine.contract.hypotheses import Hypotheses
from lemmata.proofs.engine.order.questions import READERS_FENCE, order
from lemmata.proofs.engine.smt.solve import solve
from verdicts import MANUAL, opened


@pytest.mark.parametrize("more", ["", "_two_waits", "_wait_for_what_is_over"])
def test_conditions_of_rows_that_are_handed_on(more: str) -> None:
    file = opened(f"roles/rows{more}_right")
    analysis = order(file.kernel, hypotheses(file), MANUAL)
    found = outcomes(lambda: analysis)
    assert {o.verdict for o in found} == {"proved"}
    assert {"race", "phase"} <= kinds(found)
    assert analysis.unmodelled == frozenset()


@pytest.mark.parametrize("more", ["", "_two_fences", "_no_fence_of_weights"])
def test_conditions_of_products_of_copies(more: str) -> None:
    file = opened(f"roles/products{more}_right")
    analysis = order(file.kernel, hypotheses(file), PASS_CONFIGS)
    found = outcomes(lambda: analysis)
    assert {o.verdict for o in found} == {"proved"}
    assert {"race", "phase", "barrier"} <= kinds(found)
    left = analysis.unmodelled - {READERS_FENCE}
    assert not [name for name in left if "barrier" in name or "cp_async" in name or "ptx_wgmma" in name]


def test_a_barrier_that_the_compiler_gives_to_two_roles() -> None:
    """Heads of 64 columns, which the kernel is not called with: one barrier is named for the copier and for a multiplier."""
    cfg = Config(64, 64, 64, 0.125)
    proof = hca._proof(cfg)
    analysis = order(hca_fwd(cfg), Hypotheses.of(proof.contract, proof.statics, proof.kernel), proof.pass_configs)
    assert {solve(site, witness=False).verdict for site in analysis.sites} == {"refuted"}
    found = [c for c in analysis.conditions if "threads 0 to 127 and no others" in c.statement]
    assert any(solve(c, witness=False).verdict != "proved" for c in found)
