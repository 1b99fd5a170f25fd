"""The attention kernels against their references over the reals, and in range; wrong ones refuted."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from lemmata.kernels import hca as hca_kernels
from lemmata.kernels import sparse_attention
from lemmata.kernels.csa import csa_fwd
from lemmata.kernels.hca import hca_fwd
from lemmata.kernels.sparse_attention_config import Config
from lemmata.proofs import combine, csa, hca
from lemmata.proofs.attention_lemmas import ENTRIES, SPLIT, WINDOW
from lemmata.proofs.attention_splits import sums_in_split
from lemmata.proofs.engine.guards.mutate import Candidate, candidates
from lemmata.proofs.engine.interpreter.interpret import interpret
from lemmata.proofs.engine.smt.solve import solve
from lemmata.proofs.engine.verify import verify
from lemmata.reference import csa as csa_reference
from lemmata.reference import hca as hca_reference
from lemmata.reference.attention import in_window

SMALL = Config(64, 64, 64, 0.125)
IN_SPLITS = Config(64, 128, 64, 0.125, splits=3)
MODULES = {csa_fwd: csa, hca_fwd: hca}
exhaustive = pytest.mark.exhaustive


@pytest.mark.parametrize(("factory", "cfg"), [(csa_fwd, IN_SPLITS), (hca_fwd, SMALL)], ids=["csa", "hca"])
def test_the_kernels_are_their_references(factory: Any, cfg: Any) -> None:
    report = MODULES[factory]._proof(cfg).run(layers=["L2", "range"], fresh=True)
    assert report.holds, "\n".join(map(str, report.failures))
    equal, ranges = report.layers
    assert {"tl.wait_wgmma", "tl.mbarrier_wait_parity"} <= set(equal.unmodelled), "what is not modelled is named"
    assert any("trusted: exp2_ftz" in statement for statement in equal.statements)
    assert len(ranges.waived) == (2 if cfg.splits == 1 else 0), "of each consumer"


def test_combine_is_the_weighted_sum() -> None:
    report = combine.combined("csa", csa_reference.CSA, IN_SPLITS).run(layers=["L2", "range"], fresh=True)
    assert report.holds, "\n".join(map(str, report.failures))
    assert "assumed: the elements of accs, stats, sink are finite" in report.layers[0].statements


@pytest.mark.parametrize("theorem", [WINDOW, ENTRIES, *SPLIT], ids=lambda t: t.name)
def test_the_theorems(theorem: Any) -> None:
    assert all(solve(condition).verdict == "proved" for condition in theorem.conditions())


RAISED_LATE = "constant @ growth > 8 -> growth > 16"
PLANTED = [  # the error, by a part of its name, and what fails in L2; half a minute's have a cheaper twin beside them
    pytest.param("dropped rescale @ row_sum1[h] = row_sum1[h] * rescale1[h]", "equivalence", id="row_sum not scaled"),
    pytest.param(
        "dropped rescale @ acc0[h, d] = acc0[h, d] * rescale0[h]", "equivalence", id="acc not scaled", marks=exhaustive
    ),
    pytest.param(
        "@ rows_shared[0, j] >= 0 -> rows_shared[0, j] > 0",
        "equivalence",
        id="the first row not seen",
        marks=exhaustive,
    ),
    pytest.param("@ token <= first + i * 132 -> token < first + i * 132", "equivalence", id="the query's own token"),
    pytest.param(
        "dropped operand @ first + (count - 1) * 132 -> first,", "equivalence", id="the tiles of a block's first query"
    ),
    pytest.param("index-1 @ rows_shared[1, j] -> rows_shared[0, j]", "equivalence", id="the other half's rows"),
    pytest.param("dropped statement @ T.ptx_arrive_barrier(weights_ready[1])", "unsupported", id="no arrival"),
    pytest.param(
        "inverted guard @ T.if_then_else(growth > 8, reduced[h], row_max0[h])", "not a number", id="a minimum"
    ),
    pytest.param(
        "constant @ growth0[h] > 8 -> growth0[h] > 16",
        "equivalence",
        id="acc not scaled by less than 16 bits",
        marks=exhaustive,
    ),
]
PLANTED_IN_SPLITS = [
    "dropped operand @ row_sum_shared[0, h] + row_sum_shared[1, h] -> row_sum_shared[0, h]",
    "dropped operand @ row_max0[h] * 0.125 -> row_max0[h], line",
]


@cache
def of_hca(cfg: Config) -> list[Candidate]:
    """All mutants, none of them made yet."""
    return list(candidates(hca_fwd(cfg)))


def refuted(error: str, *layers: str, cfg: Config = SMALL) -> set[str]:
    """The kinds of failures of some layers on the mutant of HCA with that in its name."""
    proof = hca._proof(cfg)
    wrong = next(m.make() for m in of_hca(cfg) if error in m.name)
    report = verify(
        wrong,
        proof.contract,
        statics=proof.statics,
        compare=proof.compare,
        waivers=proof.waivers,
        layers=layers,
        pass_configs=proof.pass_configs,
    )
    return {failure.kind for failure in report.failures}


@pytest.mark.parametrize(("error", "kind"), PLANTED)
def test_planted_errors_are_refuted(error: str, kind: str) -> None:
    assert kind in refuted(error, "L2")


@pytest.mark.parametrize("error", PLANTED_IN_SPLITS, ids=["row_sum of one half", "row_max not scaled"])
def test_errors_in_what_a_split_leaves_are_refuted(error: str) -> None:
    assert refuted(error, "L2", cfg=replace(SMALL, splits=3)) == {"equivalence"}


def test_a_maximum_that_is_raised_too_late_is_out_of_range() -> None:
    """Weights would reach 2^16: the bound of the proof is that of the kernel."""
    assert "range" in refuted(RAISED_LATE, "range")


def _case(K: int, T: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(K)
    B, S, P = 2, 5, 90

    def random(*shape: int) -> Any:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "q": random(B, S, 64, 64),
        "window_kv": random(B, P + S, 64),
        "compressed_kv": random(B, T, 64),
        "sink": random(64),
        "indices": torch.randint(-1, T + 2, (B, S, K), generator=generator),
        "offset": torch.tensor([40, 20000]),
    }


def require_near(out: torch.Tensor, lse: torch.Tensor, wanted: tuple[torch.Tensor, torch.Tensor]) -> None:
    """The results of one split are the reference's, to rounding: both round out to bf16, and the kernel its weights before."""
    torch.testing.assert_close(out[:, 0], wanted[0], rtol=2**-7, atol=2**-9)
    torch.testing.assert_close(lse[:, 0, 0], wanted[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", ["csa", "hca"])
def test_the_interpreter_agrees_with_the_reference(op: str) -> None:
    """The roles in turn, on numbers; a tile that is not full, and one that nothing fills."""
    x = _case(150, 40)
    q, window_kv, entries = (x[name].bfloat16() for name in ("q", "window_kv", "compressed_kv"))
    sink, offset = x["sink"].float(), x["offset"].int()
    out, lse = torch.full((2, 1, *q.shape[1:]), math.nan).bfloat16(), torch.full((2, 1, 1, 5, 64), math.nan)
    listed = [x["indices"].int()] if op == "csa" else []
    interpret((csa_fwd if op == "csa" else hca_fwd)(SMALL), q, window_kv, entries, *listed, sink, offset, out, lse)
    if op == "csa":
        wanted = csa_reference.csa(q, window_kv, entries, *listed, sink, offset, SMALL.window, SMALL.scale)
    else:
        wanted = hca_reference.hca(q, window_kv, entries, sink, offset, SMALL.ratio, SMALL.window, SMALL.scale)
    require_near(out, lse, wanted)


def test_a_block_takes_queries_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two groups of 3 blocks and 2 rounds: the second has one query, and two blocks without any.

    In one sequence the first round's queries see 128 entries, a tile, and the second round's 129; in the other the first
    three see nothing.
    """
    monkeypatch.setattr(hca_kernels, "ROUNDS", 2)
    for module in (hca_kernels, sparse_attention):
        monkeypatch.setattr(module, "BLOCKS", 3)
    cfg, x, S = replace(SMALL, H=8), _case(1, 140), 7
    generator = torch.Generator().manual_seed(S)
    q = torch.randn(2, S, cfg.H, cfg.D, generator=generator).bfloat16()
    window_kv = torch.randn(2, 3 + S, cfg.D, generator=generator).bfloat16()
    entries, sink = x["compressed_kv"].bfloat16(), x["sink"][: cfg.H].float()
    offset = torch.tensor([129 * cfg.ratio - 4, -3], dtype=torch.int32)
    out, lse = torch.full((2, 1, *q.shape[1:]), math.nan).bfloat16(), torch.full((2, 1, 1, S, cfg.H), math.nan)
    interpret(hca_fwd(cfg), q, window_kv, entries, sink, offset, out, lse)
    wanted = hca_reference.hca(q, window_kv, entries, sink, offset, cfg.ratio, cfg.window, cfg.scale)
    require_near(out, lse, wanted)
    with pytest.raises(AssertionError):
        require_near(out.roll(1, 2), lse, wanted)  # the results of other queries


@pytest.mark.parametrize("op", ["csa", "hca"])
def test_the_splits_of_the_reference_add_up_to_it(op: str) -> None:
    """Also where a split is empty, and where a query sees nothing."""
    x, cfg = _case(70, 150), Config(64, 64, 64, 0.125, splits=5)
    q, offset = x["q"], x["offset"]
    S = q.shape[1]
    if op == "csa":
        whole = csa_reference.csa(*(x[s.name] for s in csa_reference.CSA.inputs), cfg.window, cfg.scale)
        entries, listed = csa_reference._selected(x["compressed_kv"], x["indices"]), x["indices"].shape[-1]
    else:
        whole = hca_reference.hca(*(x[s.name] for s in hca_reference.HCA.inputs), cfg.ratio, cfg.window, cfg.scale)
        entries = hca_reference._entries(x["compressed_kv"], S, offset, cfg.ratio)
        listed = hca_reference.visible(offset, S, cfg.ratio).clamp(0, x["compressed_kv"].shape[1]).unsqueeze(-1)
    keys = in_window(x["window_kv"], S, offset, cfg.window), entries
    parts = [sums_in_split(q, keys, x["sink"], cfg, y, listed) for y in range(cfg.splits)]
    weighted, masses = (torch.stack(result, 1) for result in zip(*parts, strict=True))
    assert (masses == 0).any(), "some split is empty"
    stats = torch.stack([torch.zeros_like(masses), masses], 2)
    for got, wanted in zip(combine.added(weighted, stats, x["sink"]), whole, strict=True):
        torch.testing.assert_close(got, wanted)
