"""The kernels of hyper-connections: proved, and wrong ones refuted where they should be."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from claims import proofs
from lemmata.proofs.engine.guards.mutate import Candidate, candidates
from lemmata.proofs.suite import Proof

SHIPPED = "hc=4 hidden=4096"


def by_name() -> dict[str, Proof]:
    return {proof.name: proof for proof in proofs("mhc")}


def mhc_proofs() -> list[Any]:
    """All of them: at each run those of the width that Flash has, but for the head's; the others by make test-all."""
    found = by_name()
    tried = {name for name in found if name.endswith(SHIPPED)}
    assert len(tried) == 6
    return [
        pytest.param(proof, id=name, marks=[] if name in tried else pytest.mark.exhaustive)
        for name, proof in found.items()
    ]


@pytest.mark.parametrize("proof", mhc_proofs())
def test_every_kernel_that_ships_is_proved(proof: Proof) -> None:
    report = proof.run(fresh=True)
    assert report.holds, "\n".join(map(str, report.failures))
    layers = {layer.name: layer for layer in report.layers}
    assert set(layers) >= {"L0", "L1"}
    assert layers["L0"].guards > 20
    assert "L2" in layers or "mhc_split" in proof.name or not proof.name.endswith(SHIPPED)


def test_no_two_proofs_have_one_name() -> None:
    assert len(by_name()) == len(list(proofs("mhc")))


@cache
def of_kernel(name: str) -> list[Candidate]:
    """All mutants of a kernel of the shipped width, none of them made yet."""
    return list(candidates(by_name()[f"{name} {SHIPPED}"].kernel))


PLANTED = [  # the kernel, the error by a part of its name, the layer that sees it, and as what
    pytest.param("mhc_post_fwd", "wrong axis @ comb[", "L2", "equivalence", id="comb not transposed"),
    pytest.param("mhc_post_fwd", "grid @ for bx in 0:tokens -> for bx in 0:tokens + 1", "L0", "bounds", id="a token more"),
    pytest.param("mhc_post_fwd", "grid @ for bx in 0:tokens -> for bx in 0:tokens - 1", "L1", "coverage", id="one less"),
    pytest.param("mhc_post_bwd", "dropped statement @ T.fill(T.region(post_sums", "L2", "", id="sums not cleared"),
    pytest.param("mhc_post_bwd", "wrong axis @ grad_comb[", "L2", "equivalence", id="gradient of comb transposed"),
    pytest.param("mhc_project", "dropped operand @ T.min(", "L0", "bounds", id="a token that is none"),
    pytest.param("mhc_project", "off by one @ bx * 64 + i < tokens -> bx * 64 + i < tokens - 1", "L1", "coverage",
                 id="the last token forgotten"),
    pytest.param("mhc_project", "index+1 @ x[", "L0", "bounds", id="the next token"),
    pytest.param("mhc_gates", "index+1 @ sums[", "L0", "bounds", id="sums of the next token"),
    pytest.param("mhc_weigh", "dropped operand @ acc[", "L2", "equivalence", id="the last stream alone"),
]  # fmt: skip


@pytest.mark.parametrize(("kernel", "error", "layer", "kind"), PLANTED)
def test_planted_errors_are_refuted(kernel: str, error: str, layer: str, kind: str) -> None:
    wrong = next(m.make() for m in of_kernel(kernel) if error in m.name)
    report = replace(by_name()[f"{kernel} {SHIPPED}"], kernel=wrong).run(layers=[layer], fresh=True)
    assert not report.holds
    assert any(kind in failure.kind for failure in report.failures), report.failures
