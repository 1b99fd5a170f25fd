"""The kernels of the backward of attention against their references over the reals, and in range; wrong ones refuted."""

from __future__ import annotations

from functools import cache
from types import ModuleType

import pytest

from lemmata.kernels.hca import hca_bwd
from lemmata.kernels.sparse_attention_config import BackwardConfig
from lemmata.proofs import csa, gradient_sums, hca
from lemmata.proofs.engine.guards.mutate import Mutant, mutants
from lemmata.proofs.engine.verify import verify

SMALL = BackwardConfig(D=128, window=64)
PLANTED = {
    "parts without dz": "dropped statement @ T.wgmma_gemm(T.region(dz_shared[0, 0], 1, 64, 64), T.region(q_shared[1",
    "another entry's slot": "slot = (t - 1) * 64 + j -> slot = (t - 1) * 64 + j + 1, line",
}


@pytest.mark.parametrize("module", [csa, hca], ids=["csa", "hca"])
def test_the_kernels_are_their_references(module: ModuleType) -> None:
    report = module._backward(SMALL).run(layers=["L2", "range"], fresh=True)
    assert report.holds, "\n".join(map(str, report.failures))
    equal, ranges = report.layers
    assert {"tl.wait_wgmma", "tl.mbarrier_wait_parity"} <= set(equal.unmodelled), "what is not modelled is named"
    assert len(ranges.waived) == 3, "two of w, of each consumer, and one of p"


@cache  # it takes seconds to list them
def of_hca() -> list[Mutant]:
    """All mutants."""
    return mutants(hca_bwd(SMALL))


@pytest.mark.parametrize("error", PLANTED)
def test_planted_errors_are_refuted(error: str) -> None:
    proof = hca._backward(SMALL)
    wrong = next(m.prim_func for m in of_hca() if PLANTED[error] in m.name)
    report = verify(wrong, proof.contract, statics=proof.statics, compare=proof.compare, pass_configs=proof.pass_configs,
                    waivers=proof.waivers, layers=["L2"])  # fmt: skip
    assert {failure.kind for failure in report.failures} == {"equivalence"}


@pytest.mark.parametrize("op", ["csa", "hca"])
def test_the_sums(op: str) -> None:
    for proof in gradient_sums.summing(op, gradient_sums.Config()):
        report = proof.run(layers=["L1", "L2"] if proof.compare else ["L1"], fresh=True)
        assert report.holds, "\n".join(map(str, report.failures))
