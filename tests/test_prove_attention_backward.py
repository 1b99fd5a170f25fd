"""The kernels of the backward of attention against their references over the reals, and in range; wrong ones refuted."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import Any

import pytest
import tilelang.language as T
from tilelang import tvm

from lemmata.kernels import gradient_sums as kernels
from lemmata.kernels import sparse_attention_backward
from lemmata.kernels.gradient_sums import AHEAD
from lemmata.kernels.hca import hca_bwd
from lemmata.kernels.sparse_attention_config import F32, HEADS, BackwardConfig
from lemmata.proofs import csa, gradient_sums, hca
from lemmata.proofs.engine.guards.mutate import Candidate, candidates
from lemmata.proofs.engine.verify import verify
from test_kernel_names import occurring

SMALL = BackwardConfig(D=128, window=64)
PRO = replace(SMALL, H=128)  # two blocks of heads
LOAD_WEIGHT, WRITE_PANEL = sparse_attention_backward.load_weight, sparse_attention_backward.write_panel
PLANTED = {
    "parts without dz": (
        SMALL,
        "dropped statement @ T.wgmma_gemm(T.region(dz_shared[0, 0], 1, 64, 64), T.region(q_shared[1",
    ),
    "another entry's slot": (SMALL, "slot = (t - 1) * 64 + j -> slot = (t - 1) * 64 + j + 1, line"),
    "the last heads for all": (PRO, "dropped operand @ heads * 64 -> 64, line"),
    "the sums of the first heads for all": (PRO, "dropped operand @ heads * 64 + h -> h, line"),
    "one block of heads": (PRO, "constant @ bx % 2 -> T.FloorMod(bx, 1), line"),
}


@pytest.mark.parametrize(
    ("module", "cfg"),
    [
        pytest.param(csa, SMALL, id="csa"),
        pytest.param(hca, SMALL, id="hca"),
        pytest.param(csa, PRO, id="csa of two blocks of heads"),
        pytest.param(hca, PRO, id="hca of two blocks of heads"),
        pytest.param(hca, replace(SMALL, ratio=1), id="swa", marks=pytest.mark.exhaustive),
    ],
)
def test_the_kernels_are_their_references(module: ModuleType, cfg: BackwardConfig) -> None:
    report = module._backward(cfg).run(layers=["L2", "range"], fresh=True)
    assert report.holds, "\n".join(map(str, report.failures))
    equal, ranges = report.layers
    assert {"tl.wait_wgmma", "tl.mbarrier_wait_parity"} <= set(equal.unmodelled), "what is not modelled is named"
    assert len(ranges.waived) == 3, "two of w, of each consumer, and one of p"


@cache
def of_hca(cfg: BackwardConfig) -> list[Candidate]:
    """All mutants, none of them made yet."""
    return list(candidates(hca_bwd(cfg)))


@pytest.mark.parametrize("error", PLANTED)
def test_planted_errors_are_refuted(error: str) -> None:
    cfg, name = PLANTED[error]
    proof = hca._backward(cfg)
    wrong = next(m.make() for m in of_hca(cfg) if name in m.name)
    report = verify(wrong, proof.contract, statics=proof.statics, compare=proof.compare, pass_configs=proof.pass_configs,
                    waivers=proof.waivers, layers=["L2"])  # fmt: skip
    assert {failure.kind for failure in report.failures} == {"equivalence"}


@T.macro
def of_the_other_heads(cfg, me, t, i, p):
    WRITE_PANEL(cfg, me._replace(at=me.at._replace(heads=1 - me.at.heads)), t, i, p)


def test_parts_in_the_place_of_the_other_block_of_heads_are_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    proof = hca._backward(PRO)
    monkeypatch.setattr(sparse_attention_backward, "write_panel", of_the_other_heads)
    report = verify(hca_bwd(PRO), proof.contract, statics=proof.statics, compare=proof.compare,
                    pass_configs=proof.pass_configs, waivers=proof.waivers, layers=["L2"])  # fmt: skip
    assert {failure.kind for failure in report.failures} == {"equivalence"}
    assert all("_parts" in failure.statement for failure in report.failures)


@T.macro
def with_an_lse_of_0(cfg, at, heads, lse, weight):
    LOAD_WEIGHT(cfg, at, heads, lse, weight)
    for h in T.Parallel(HEADS):
        lse[h] = T.if_then_else(lse[h] < T.infinity(F32), lse[h], 0)


def test_a_query_without_keys_that_has_gradients_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    proof = hca._backward(SMALL)
    monkeypatch.setattr(sparse_attention_backward, "load_weight", with_an_lse_of_0)
    report = verify(hca_bwd(SMALL), proof.contract, statics=proof.statics, compare=proof.compare,
                    pass_configs=proof.pass_configs, waivers=proof.waivers, layers=["L2"])  # fmt: skip
    assert report.failures
    assert all(failure.statement.startswith("without a key") for failure in report.failures)


SUMS = gradient_sums.Config(D=128)


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize(("op", "kernel"), [("csa", "sum_listed"), ("hca", "sum_visible"), ("swa", "sum_window")])
def test_the_sums(op: str, kernel: str, blocks: int) -> None:
    """csa and hca sum over the window by the kernel of swa, which is proved once; the second of theirs is their own."""
    of_window, *others = gradient_sums.summing(op, replace(SUMS, blocks=blocks))
    (of_swa,) = gradient_sums.summing("swa", replace(SUMS, blocks=blocks))
    assert tvm.ir.structural_equal(of_window.kernel, of_swa.kernel)
    assert (of_window.contract, of_window.statics, of_window.layers) == (of_swa.contract, of_swa.statics, of_swa.layers)
    (proof,) = others or [of_window]
    report = proof.run(layers=["L1", "L2", "range", "lemmas"], fresh=True)
    assert report.holds, "\n".join(map(str, report.failures))
    assert report.kernel == kernel


def test_the_product() -> None:
    report = gradient_sums.products("swa", SUMS).run(layers=["L1", "L2", "range"], fresh=True)
    assert report.holds, "\n".join(map(str, report.failures))


@pytest.mark.parametrize("factory", [kernels.sum_window, kernels.sum_listed, kernels.sum_visible])
def test_the_names_that_proofs_of_sums_bind_occur(factory: Any) -> None:
    assert {gradient_sums.LOOP, gradient_sums.ACC} <= occurring(factory(SUMS))


@T.macro
def backwards(cfg, acc, ahead):
    for u in T.unroll(AHEAD):
        for d in T.Parallel(cfg.D):
            acc[d] += ahead[AHEAD - 1 - u, d]


@T.macro
def without_the_last(cfg, acc, ahead):
    for u in T.unroll(AHEAD - 1):
        for d in T.Parallel(cfg.D):
            acc[d] += ahead[u, d]


@pytest.mark.parametrize(("add", "words"), [(backwards, "in order: acc"), (without_the_last, "acc")])
def test_parts_in_another_order_or_left_out_are_refuted(add: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (proof,) = gradient_sums.summing("swa", SUMS)
    monkeypatch.setattr(kernels, "_add", add)
    wrong = verify(kernels.sum_window(SUMS), proof.contract, statics=proof.statics, compare=proof.compare,
                   pass_configs=proof.pass_configs, layers=["L2"])  # fmt: skip
    assert wrong.failures
    assert wrong.failures[0].statement.startswith(words)
    assert {failure.kind for failure in wrong.failures} == {"equivalence"}


@pytest.mark.parametrize(("op", "reference"), [("csa", "_listed"), ("hca", "_visible"), ("swa", "_window")])
def test_totals_without_what_was_there_are_refuted(op: str, reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right: Any = getattr(gradient_sums, reference)
    monkeypatch.setattr(gradient_sums, reference, lambda cfg, *given: right(cfg, *given) - given[-1])
    *_, proof = gradient_sums.summing(op, SUMS)
    report = proof.run(layers=["L2"], fresh=True)
    assert ["total" in failure.statement for failure in report.failures] == [True]


@pytest.mark.parametrize("blocks", [1, 2])
def test_what_hca_is_not_the_sum_of_is_told(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part of a query of its own in the gradient of an entry, twice."""
    right: Any = gradient_sums.hca.hca_parts

    def twice(*given: Any) -> Any:
        of_q, of_window, of_entries = right(*given)
        return of_q, of_window, of_entries * 2

    monkeypatch.setattr(gradient_sums.hca, "hca_parts", twice)
    window, entries = gradient_sums._of_hca(replace(SUMS, blocks=blocks))
    assert (window.holds, entries.holds) == (True, False)


def test_the_parts_of_one_block_of_heads_are_not_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    right: Any = gradient_sums.hca.hca_parts
    monkeypatch.setattr(gradient_sums.hca, "hca_parts", lambda *given: [x[..., :1, :] for x in right(*given)])
    window, entries = gradient_sums._of_hca(replace(SUMS, blocks=2))
    assert (window.holds, entries.holds) == (False, False)
