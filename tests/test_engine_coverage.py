"""Layer 1, coverage, on kernels that ship: every element is written once. Small kernels are in verdicts/coverage."""

import pytest

from engine_verdicts import kinds, outcomes
from lemmata.kernels import sinkhorn
from lemmata.proofs.engine.contract.hypotheses import Hypotheses
from lemmata.proofs.engine.layers.coverage import coverage
from lemmata.reference.sinkhorn import BACKWARD, FORWARD
from verdicts import STRICT

STATICS = {"iterations": 20, "eps": 1e-6}


@pytest.mark.parametrize("n", [2, 3, 4])
def test_sinkhorn(n):
    for build, contract in ((sinkhorn.sinkhorn_fwd, FORWARD), (sinkhorn.sinkhorn_bwd, BACKWARD)):
        kernel = build(sinkhorn.Config(n=n))
        found = outcomes(coverage, kernel, Hypotheses.of(contract, {"n": n, **STATICS}, kernel), STRICT)
        assert kinds(found) == {"coverage", "uniqueness"}
        assert {o.verdict for o in found} == {"proved"}
