"""The second opinion over prime fields: on every kernel whose equality is proved, and on wrong ones, of which it must tell."""

# No `from __future__ import annotations`: TileLang could not resolve the sizes that only annotations name.
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import tilelang.language as T
import torch

from lemmata.kernels.combine import combine
from lemmata.kernels.sinkhorn import Config as SinkhornConfig
from lemmata.kernels.sparse_attention_config import Config
from lemmata.operators import OPERATORS
from lemmata.proofs import hca, second_opinion, sinkhorn, verify
from lemmata.proofs.combine import added
from lemmata.proofs.engine.base.errors import Unsupported
from lemmata.proofs.engine.forms import normal_form
from lemmata.proofs.engine.guards.mutate import Mutant, mutants
from lemmata.proofs.engine.interpreter.interpret import Fault
from lemmata.proofs.engine.interpreter.second_opinion import run
from lemmata.proofs.suite import Proof, proofs
from lemmata.reference import csa as csa_reference
from lemmata.reference import hca as hca_reference
from lemmata.reference import indexer as indexer_reference
from lemmata.reference import sinkhorn as sinkhorn_reference
from lemmata.reference.topk_check import topk_check
from verdicts import contract, opened

exhaustive = pytest.mark.exhaustive
Question = dict[str, Any]  # arguments of second_opinion beside kernel and contract, or in their place


def offsets(*of: int) -> dict[str, torch.Tensor]:
    return {"offset": torch.tensor(of, dtype=torch.int32)}


def of_sinkhorn(p: Proof) -> Question:
    """Two blocks, the second of one matrix."""
    of = sinkhorn_reference.sinkhorn if p.contract.op == "sinkhorn" else sinkhorn_reference.sinkhorn_bwd
    more = {name: p.statics[name] for name in ("iterations", "eps")}
    return {"reference": partial(of, **more), "sizes": {"count": 33}}


def of_scores(p: Proof) -> Question:
    """A chunk that the first sequence sees whole, and one of which it sees a part; the other sequence sees less."""
    eight_bits = len(p.contract.inputs) == 5
    of = indexer_reference.indexer_scores_fp8 if eight_bits else indexer_reference.indexer_scores
    queries, ratio, chunk = 128 // int(p.statics["H"]), int(p.statics["ratio"]), int(p.statics["chunk"])
    sizes = {"B": 2, "S": queries + 1, "T": chunk + 40}
    return {"reference": partial(of, ratio=ratio), "sizes": sizes, "given": offsets(ratio * (chunk + 20), ratio * 30)}


def of_scores_backward(p: Proof) -> Question:
    """A pair of tiles and a part of another; a block of four queries and one of a single one."""

    def reference(*inputs: Any) -> Any:
        of_q, _, of_weights = indexer_reference.indexer_scores_bwd(*inputs, ratio=int(p.statics["ratio"]))
        return of_q, of_weights

    return {"reference": reference, "sizes": {"B": 2, "S": 5, "T": 300}, "given": offsets(1100, 100)}


def of_attention(p: Proof) -> Question:
    """A window whose first token is missing, and a tile of entries that is not full."""
    ratio, listed = p.statics.get("ratio"), {"K": 140} if "csa" in p.contract.op else {}
    more = {n: p.statics[n] for n in ("window", "scale", "ratio") if n in p.statics}
    whole: Callable[..., Any] = hca_reference.hca if ratio else csa_reference.csa
    sizes = {"B": 1, "S": 2, "P": 125, "T": 150, **listed}
    asked: Question = {"sizes": sizes, "given": offsets(int(140 * ratio) if ratio else 126)}
    if p.statics["splits"] == 1:

        def split(*inputs: Any) -> Any:
            out, lse = whole(*inputs, **more)
            return out.unsqueeze(1), lse.unsqueeze(1).unsqueeze(1)

        return {**asked, "reference": split}

    cfg = Config(int(p.statics["H"]), int(p.statics["D"]), splits=int(p.statics["splits"]))

    def both(field: Any, inputs: Mapping[str, Any]) -> Any:
        parts = run(field, p.kernel, inputs)
        return run(field, combine(cfg), {"accs": parts["out"], "stats": parts["stats"], "sink": inputs["sink"]})

    operator = hca_reference.HCA if ratio else csa_reference.CSA
    asked["sizes"] = {**sizes, "S": 1}
    return {**asked, "kernel": both, "contract": operator, "reference": partial(whole, **more)}


def of_combine(p: Proof) -> Question:
    """The sums of splits as the claim has them; ``of_attention`` runs this kernel on what other kernels write."""
    return {"reference": added, "sizes": {"B": 1, "S": 1}}


def of_attention_backward(p: Proof) -> Question:
    """A part of a tile of the window, and of one of entries."""
    parts: Callable[..., Any] = hca_reference.hca_parts if "ratio" in p.statics else csa_reference.csa_parts
    more = {n: p.statics[n] for n in ("window", "scale", "ratio") if n in p.statics}

    def reference(*inputs: Any) -> Any:
        of_q, *of_keys = parts(*inputs, **more)
        return of_q, *(x.unsqueeze(3) for x in of_keys)

    sizes = {"B": 1, "S": 2, "P": 125, "T": 70, **({} if "ratio" in p.statics else {"K": 70})}
    return {"reference": reference, "sizes": sizes, "given": offsets(int(p.statics.get("ratio", 2)) * 66)}


def of_delta(p: Proof) -> Question:
    return {"reference": lambda x, y: (x * y).sum(-1), "sizes": {"N": 3}}


QUESTIONS: dict[str, Callable[[Proof], Question]] = {
    **dict.fromkeys(("sinkhorn_fwd", "sinkhorn_bwd"), of_sinkhorn),
    **dict.fromkeys(("indexer_scores", "indexer_scores_fp8"), of_scores),
    **{"indexer_scores_bwd_q": of_scores_backward, "combine": of_combine, "delta": of_delta},
    **dict.fromkeys(("csa_fwd", "hca_fwd"), of_attention),
    **dict.fromkeys(("csa_bwd", "hca_bwd"), of_attention_backward),
}
REFUSED = {"topk_check": "another type"}  # it takes the bits of floats, which are no numbers of a field


def name(p: Proof) -> str:
    return str(p.kernel.attrs["global_symbol"])


def proved_equal() -> list[Any]:
    """Every proof that claims L2; those of other sizes of the same text in the exhaustive run."""

    def marks(p: Proof) -> Any:
        return [exhaustive] if p.statics.get("n", 4) not in (2, 4) or p.statics.get("chunk") == 2048 else []

    found = {p.name: p for op in OPERATORS for p in proofs(op) if "L2" in p.claimed()}  # an operator may share another's
    return [pytest.param(p, id=p.name, marks=marks(p)) for p in found.values()]


@pytest.mark.parametrize("proof", proved_equal())
def test_what_is_proved_equal_is_equal_over_prime_fields(proof: Proof) -> None:
    """The kernel as it ships, beside the reference as it is."""
    if name(proof) in REFUSED:
        with pytest.raises(Unsupported, match=REFUSED[name(proof)]):
            second_opinion(proof.kernel, proof.contract, topk_check, sizes={"R": 1, "T": 9}, statics=proof.statics)
        return
    asked = {"kernel": proof.kernel, "contract": proof.contract, "statics": proof.statics, **QUESTIONS[name(proof)](proof)}
    assert second_opinion(**asked) == []
