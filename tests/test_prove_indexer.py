"""The score kernels of the indexer: proved, causal, and wrong ones refuted where they should be."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from claims import proofs
from lemmata.kernels.build import PASS_CONFIGS
from lemmata.kernels.indexer import Config, fp8, indexer_scores, indexer_scores_fp8
from lemmata.proofs import interpret
from lemmata.proofs.engine.contract.hypotheses import Hypotheses
from lemmata.proofs.engine.guards.mutate import Candidate, candidates
from lemmata.proofs.engine.layers.bounds import bounds
from lemmata.proofs.engine.layers.coverage import coverage
from lemmata.proofs.engine.order.questions import READERS_FENCE
from lemmata.proofs.engine.smt.solve import solve
from lemmata.proofs.engine.verify import verify
from lemmata.proofs.indexer import compare
from lemmata.reference import indexer as reference

ASYNCHRONOUS = {
    "tl.ptx_cp_async",
    "tirx.ptx_commit_group",
    "tirx.ptx_wait_group",
    "tl.ptx_wgmma_ss",
    "tl.warpgroup_wait",
}
SMALL = Config(16, 32, chunk=256)


def indexer_proofs() -> list[Any]:
    """All of them: at each run DeepSeek-V4's in bf16 for prefill and in fp8 for decode; the others by make test-all."""
    tried = {"indexer_scores H=64 D=128 ratio=4 chunk=2048", "indexer_scores_fp8 H=64 D=128 ratio=4 chunk=256"}
    found = [
        pytest.param(p, id=p.name, marks=pytest.mark.exhaustive if p.name not in tried else [])
        for p in proofs("indexer")
        if "_bwd_" not in p.name
    ]
    assert tried <= {p.id for p in found}
    return found


@pytest.mark.parametrize("proof", indexer_proofs())
def test_every_kernel_that_ships_is_proved(proof: Any) -> None:
    report = proof.run(fresh=True)
    assert report.holds, "\n".join(map(str, report.failures))
    layers = {layer.name: layer for layer in report.layers}
    assert list(layers)[:4] == ["L0", "L1", "L2", "range"]
    assert all(layers[name].guards > 100 for name in ("L0", "L1"))
    assert set(layers["L0"].unmodelled) > ASYNCHRONOUS, "what is not modelled is named"
    assert not set(layers["L1"].unmodelled) & ASYNCHRONOUS, "L1 knows when a copy has arrived"
    assert READERS_FENCE in layers["L1"].unmodelled
    assert layers["L2"].conditions == 3, "a chunk that nobody sees, one seen whole, any other"
    assert any("trusted: max_nan" in statement for statement in layers["L2"].statements)


def test_causality_is_printed_as_a_theorem() -> None:
    (bf16, e4m3) = [p for p in proofs("indexer") if p.lemmas and "_bwd" not in p.contract.op]
    for proof in (bf16, e4m3):
        (layer,) = proof.run(layers=["lemmas"], fresh=True).layers
        assert layer.holds
        assert any(s.startswith("causality: ") and s.endswith("[proved]") for s in layer.statements)
    assert any(s.startswith("scale: ") for s in layer.statements)


PLANTED = [  # the error, by a part of its name, and what fails in L0 or L1
    pytest.param("dropped operand @ T.min(entry + j, L - 1) -> entry + j", "bounds", id="copy without a clamp"),
    pytest.param("@ T.min(L, (offset[b] + query + 1) // 4) -> (offset", "bounds", id="entries that do not exist"),
    pytest.param("-> query + 8 <= S + 1", "bounds", id="one query too many"),
    pytest.param("floor for ceil @ for by", "coverage", id="a last chunk forgotten"),
]
PLANTED_IN_VALUES = [  # and what fails in L2
    pytest.param("@ offset[b] + query + 1 -> offset[b] + query + 2", "equivalence", id="seen whole one early"),
    pytest.param("@ offset[b] + query + i + 1 -> offset[b] + query + i + 2", "equivalence", id="seen one early"),
    pytest.param("-> first >= (offset[b] + query + 8) // 4 - 1", "equivalence", id="an entry not scored"),
    pytest.param("-> first > (offset[b] + query + 8) // 4", "", id="a chunk of no entry scored all the same"),
    pytest.param("-> w[i, g + 1, lane, p]", "uninitialised", id="weights of another group"),
    pytest.param("-> partial[j, i, lane + 1], line", "uninitialised", id="the sum of another lane"),
]
STATICS = {"H": SMALL.H, "D": SMALL.D, "ratio": SMALL.ratio}


@cache
def of_small() -> list[Candidate]:
    """All mutants, none of them made yet."""
    return list(candidates(indexer_scores(SMALL)))


def of_small_with(error: str) -> Any:
    """The first of them with this in its name."""
    return next(m.make() for m in of_small() if error in m.name)


@pytest.mark.parametrize(("error", "kind"), PLANTED)
def test_planted_errors_are_refuted(error: str, kind: str) -> None:
    wrong, layer = of_small_with(error), {"bounds": bounds, "coverage": coverage}[kind]
    found = layer(wrong, Hypotheses.of(reference.SCORES, STATICS, wrong), PASS_CONFIGS).conditions
    assert any(c.kind == kind and solve(c).verdict == "refuted" for c in found)


@pytest.mark.parametrize(("error", "kind"), PLANTED_IN_VALUES)
def test_planted_errors_in_values_are_refuted(error: str, kind: str) -> None:
    report = verify(
        of_small_with(error),
        reference.SCORES,
        statics=STATICS,
        compare=compare(SMALL),
        layers=["L2"],
        pass_configs=PASS_CONFIGS,
    )
    assert kind in {f.kind for f in report.failures} if kind else report.holds, report.failures


@pytest.mark.parametrize("cfg", [SMALL, fp8(64, 32, 3, chunk=256)], ids=["bf16", "fp8"])
def test_the_interpreter_agrees_with_the_reference(cfg: Config) -> None:
    """Chunks seen whole, in part and not at all; a last query and a last chunk that are not full."""
    quantized = cfg.dtype != "bfloat16"
    generator = torch.Generator().manual_seed(0)
    queries, entries = 9, 300
    q = torch.randn(2, queries, cfg.H, cfg.D, generator=generator).to(getattr(torch, cfg.dtype))
    k = torch.randn(2, entries, cfg.D, generator=generator).to(q.dtype)
    weights = torch.randn(2, queries, cfg.H, generator=generator)
    scale = [torch.rand(2, entries, generator=generator)] if quantized else []
    inputs = (q, k, weights, *scale, torch.tensor([0, 270 * cfg.ratio], dtype=torch.int32))
    out = torch.empty(2, queries, entries)
    interpret((indexer_scores_fp8 if quantized else indexer_scores)(cfg), *inputs, out)
    scores: Any = reference.indexer_scores_fp8 if quantized else reference.indexer_scores
    torch.testing.assert_close(out, scores(*inputs, ratio=cfg.ratio), rtol=1e-5, atol=1e-4)
