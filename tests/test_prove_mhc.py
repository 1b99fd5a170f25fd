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


@cache
def by_name() -> dict[str, Proof]:
    return {proof.name: proof for proof in proofs("mhc")}


def mhc_proofs() -> list[Any]:
    """All of them: at each run those of the width that Flash has, but for the head's; the others by make test-all."""
    found = by_name()
    tried = {name for name in found if name.endswith((SHIPPED, f"{SHIPPED} chunks=4"))}
    assert len(tried) == 16
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
    assert "L2" in layers or not proof.name.endswith(SHIPPED)


def test_no_two_proofs_have_one_name() -> None:
    assert len(by_name()) == len(list(proofs("mhc")))


def shipped(name: str) -> Proof:
    """The proof of a kernel of the shipped width, in as many chunks as 2048 tokens make."""
    found = by_name()
    return found.get(f"{name} {SHIPPED}") or found[f"{name} {SHIPPED} chunks=4"]


@cache
def of_kernel(name: str) -> list[Candidate]:
    """All mutants of a kernel of the shipped width, none of them made yet."""
    return list(candidates(shipped(name).kernel))


PLANTED = [  # the kernel, the error by a part of its name, the layer that sees it, and as what
    pytest.param("mhc_post_fwd", "wrong axis @ comb[", "L2", "equivalence", id="comb not transposed"),
    pytest.param("mhc_post_fwd", "grid @ for bx in 0:tokens * 4 -> for bx in 0:tokens * 4 + 1", "L0", "bounds",
                 id="columns of a token more"),
    pytest.param("mhc_post_fwd", "grid @ for bx in 0:tokens * 4 -> for bx in 0:tokens * 4 - 1", "L1", "coverage",
                 id="the last columns forgotten"),
    pytest.param("mhc_post_bwd", "dropped statement @ T.fill(T.region(post_sums", "L2", "", id="sums not cleared"),
    pytest.param("mhc_post_bwd", "wrong axis @ grad_comb[", "L2", "equivalence", id="gradient of comb transposed"),
    pytest.param("mhc_project", "dropped operand @ T.min(", "L0", "bounds", id="a token that is none"),
    pytest.param("mhc_project", "off by one @ block * 64 + r < tokens -> block * 64 + r < tokens - 1", "L1", "coverage",
                 id="the last token forgotten"),
    pytest.param("mhc_project", "index+1 @ x[", "L0", "bounds", id="the next token"),
    pytest.param("mhc_project", "dropped statement @ parts[i, 1, m, k] = ", "L2", "", id="a part of fn is not written"),
    pytest.param("mhc_split", "dropped statement @ parts[1,", "L1", "coverage", id="the second part is not written"),
    pytest.param("mhc_split", "off by one @ by < 24 -> by <= 24", "L2", "equivalence", id="a row of fn for one that fills up"),
    pytest.param("mhc_multiply", "dropped statement @ T.fence_proxy_async", "L1", "async", id="no fence behind the last tile"),
    pytest.param("mhc_multiply", "constant @ n % 4", "L2", "", id="tiles of other streams"),
    pytest.param("mhc_weigh", "index+1 @ sums[", "L0", "bounds", id="sums of the next token"),
    pytest.param("mhc_weigh", "dropped operand @ acc[", "L2", "equivalence", id="the last stream alone"),
    pytest.param("mhc_weigh", "dropped operand @ v[j] + p[i, j] * r[i] -> p[i, j] * r[i]", "L2", "", id="no sums of columns"),
    pytest.param("mhc_weigh", "constant @ 4 + o -> 5 + o", "L2", "equivalence", id="post of the next stream"),
    pytest.param("mhc_mix", "wrong axis @ comb[", "L2", "equivalence", id="comb not transposed in between"),
    pytest.param("mhc_mix", "dropped guard @ if token + r < tokens", "L0", "bounds", id="streams of a token that is none"),
    pytest.param("mhc_mix", "constant @ token % 64", "L2", "", id="tiles of other tokens"),
    pytest.param("mhc_mix", "dropped statement @ mixed[o, h * 32 + r, k]", "L2", "uninitialised", id="no zeros, nothing"),
    pytest.param("mhc_mix", "off by one @ block * 64 + h * 32 < tokens -> block * 64 + h * 32 < tokens - 1", "L2",
                 "equivalence", id="zeros for half a block with one token"),
    pytest.param("mhc_weigh_norm", "dropped barrier @ T.tvm_storage_sync", "L1", "race", id="no barrier before the arms"),
    pytest.param("mhc_weigh_norm", "dropped guard @ if bx % 2 < 1 -> never", "L1", "coverage", id="no block sums"),
    pytest.param("mhc_weigh_norm", "dropped operand @ bx // 2 -> bx", "L0", "bounds", id="a token for each block"),
    pytest.param("mhc_weigh_norm", "dropped operand @ total[0] / 4096", "L2", "equivalence", id="no eps of the norm"),
    pytest.param("mhc_weigh_norm", "index+1 @ norm_weight[c]", "L0", "bounds", id="the next column's weight"),
    pytest.param("mhc_norm_bwd", "dropped operand @ r * r * r", "L2", "equivalence", id="a root short"),
    pytest.param("mhc_norm_bwd", "index-1 @ pre[", "L0", "bounds", id="weights of the token before"),
    pytest.param("mhc_normalise", "index-1 @ dots[", "L0", "bounds", id="gradients of the token before"),
    pytest.param("mhc_gates_bwd", "dropped operand @ grad_pre[token, o] * sigmoid", "L2", "equivalence", id="half a slope"),
    pytest.param("mhc_gates_bwd", "dropped operand @ radial[i] * -1 * factor -> factor", "L2", "equivalence", id="no norm"),
    pytest.param("mhc_read_bwd", "wrong axis @ grad_shared[r, k]", "L2", "equivalence", id="rows for columns"),
    pytest.param("mhc_read_bwd", "off by one @ token + r < tokens -> token + r <= tokens", "L0", "bounds", id="one too many"),
    pytest.param("mhc_sum_gates", "dropped operand @ of_base[m] + grads[u, m]", "L2", "", id="the last token alone"),
    pytest.param("mhc_sum_gates", "loop start @ for t in first:end", "L2", "", id="a tile is left out"),
    pytest.param("mhc_add_gates", "dropped statement @ scale_shared[m] = ", "L2", "", id="sums that are not there"),
]  # fmt: skip


@pytest.mark.parametrize(("kernel", "error", "layer", "kind"), PLANTED)
def test_planted_errors_are_refuted(kernel: str, error: str, layer: str, kind: str) -> None:
    wrong = next(m.make() for m in of_kernel(kernel) if error in m.name)
    report = replace(shipped(kernel), kernel=wrong).run(layers=[layer], fresh=True)
    assert not report.holds
    assert any(kind in failure.kind for failure in report.failures), report.failures
