"""What the second opinion over prime fields is asked of each kernel that ships: its reference, sizes and integer inputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from lemmata.kernels import mhc_pre
from lemmata.kernels.combine import combine
from lemmata.kernels.sparse_attention_config import Config
from lemmata.proofs import mhc
from lemmata.proofs.combine import added
from lemmata.proofs.engine.interpreter.second_opinion import run
from lemmata.proofs.suite import Proof
from lemmata.reference import csa as csa_reference
from lemmata.reference import hca as hca_reference
from lemmata.reference import indexer as indexer_reference
from lemmata.reference import mhc as mhc_reference
from lemmata.reference import sinkhorn as sinkhorn_reference

Question = dict[str, Any]  # arguments of second_opinion beside kernel and contract, or in their place


def offsets(*of: int) -> dict[str, torch.Tensor]:
    return {"offset": torch.tensor(of, dtype=torch.int32)}


def of_sinkhorn(p: Proof) -> Question:
    """Two blocks, the second of one matrix."""
    of = sinkhorn_reference.sinkhorn if p.contract.op == "sinkhorn" else sinkhorn_reference.sinkhorn_bwd
    more = {name: p.statics[name] for name in ("iterations", "eps")}
    return {"reference": partial(of, **more), "sizes": {"count": 33}}


def of_scores(p: Proof) -> Question:
    """A chunk that the first sequence sees whole, and one of which it sees a part; short chunks have another that sees less."""
    eight_bits = len(p.contract.inputs) == 5
    of = indexer_reference.indexer_scores_fp8 if eight_bits else indexer_reference.indexer_scores
    queries, ratio, chunk = 128 // int(p.statics["H"]), int(p.statics["ratio"]), int(p.statics["chunk"])
    seen = [ratio * (chunk + 20), ratio * 30][: 1 if chunk > 256 else 2]
    sizes = {"B": len(seen), "S": queries + 1, "T": chunk + 40}
    return {"reference": partial(of, ratio=ratio), "sizes": sizes, "given": offsets(*seen)}


def of_scores_backward(p: Proof) -> Question:
    """A pair of tiles and a part of another; a block of four queries and one of a single one."""

    def reference(*inputs: Any) -> Any:
        of_q, _, of_weights = indexer_reference.indexer_scores_bwd(*inputs, ratio=int(p.statics["ratio"]))
        return of_q, of_weights

    return {"reference": reference, "sizes": {"B": 2, "S": 5, "T": 300}, "given": offsets(1100, 100)}


def of_scores_backward_of_keys(p: Proof) -> Question:
    """An odd number of queries, some of whose splits are empty, and a block of entries that is not full."""
    splits, ratio = int(p.statics["splits"]), int(p.statics["ratio"])

    def reference(grad_out: Any, *others: Any) -> Any:
        pairs = -(-grad_out.shape[1] // 2)
        pair = (torch.arange(grad_out.shape[1]) // 2).unsqueeze(-1)
        ends = [pairs * y // splits for y in range(splits + 1)]
        inside = [(pair >= a) & (pair < b) for a, b in itertools.pairwise(ends)]
        each = (
            indexer_reference.indexer_scores_bwd(torch.where(i, grad_out, 0.0), *others, ratio=ratio) for i in inside
        )
        return torch.cat([of_k.unsqueeze(1) for _, of_k, _ in each], 1)

    return {"reference": reference, "sizes": {"B": 1, "S": 5, "T": 70}, "given": offsets(272)}


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


def of_window_sum(p: Proof) -> Question:
    """Rows before the first query, and of more parts than are read at once."""
    window = int(p.statics["window"])

    def reference(parts: Any, total: Any) -> Any:
        row, s, slot = (torch.arange(n) for n in (total.shape[1], parts.shape[1], window))
        past = total.shape[1] - parts.shape[1]
        here = row.view(-1, 1, 1) == past + s.view(-1, 1) + slot - (window - 1)
        return total + torch.einsum("rsi,bsind->brd", here.double(), parts)

    return {"reference": reference, "sizes": {"B": 1, "S": 18, "P": 3}}


def of_list_sum(p: Proof) -> Question:
    """Rows without a part, of more than are read at once, and of a list that would end beyond all parts."""
    ends = {"starts": [0, 3, 3, 20, 50], "ends": [3, 3, 20, 60, 40]}
    given = {name: torch.tensor(of, dtype=torch.int32) for name, of in ends.items()}

    def reference(parts: Any, order: Any, starts: Any, ends: Any, total: Any) -> Any:
        n = torch.arange(len(order))
        listed = (n >= starts.unsqueeze(-1)) & (n < ends.unsqueeze(-1))
        return total + torch.einsum("rn,nbd->rd", listed.double(), parts[order])

    return {"reference": reference, "sizes": {"N": 40, "R": 5}, "given": given}


def of_visible_sum(p: Proof) -> Question:
    """An entry that all queries see, one that some do, and one that none does."""

    def reference(parts: Any, offset: Any, total: Any) -> Any:
        seen = indexer_reference.visible(offset, parts.shape[1], int(p.statics["ratio"])).unsqueeze(-1)
        seen = torch.arange(total.shape[1]) < seen
        return total + torch.einsum("bse,bsend->bed", seen.double(), parts)

    return {"reference": reference, "sizes": {"B": 1, "S": 20, "T": 3}, "given": offsets(250)}


def of_streams(p: Proof) -> Question:
    """Streams of two tokens, after a layer or before it."""
    of = {
        "mhc_post": mhc_reference.mhc_post,
        "mhc_post_bwd": mhc_reference.mhc_post_bwd,
        "mhc_weigh": mhc._weighted,
    }
    return {"reference": of[p.contract.op], "sizes": {"tokens": 2}}


def of_coefficients(p: Proof) -> Question:
    """What is projected of two tokens, or the coefficients from that."""
    cfg = mhc_pre.Config(int(p.statics["hc"]), int(p.statics["hidden"]), head="head" in p.statics)
    _, of = mhc._project(cfg) if p.contract.op == "mhc_project" else mhc._gates(cfg)
    return {"reference": of, "sizes": {"tokens": 2}}


QUESTIONS: dict[str, Callable[[Proof], Question]] = {
    **dict.fromkeys(("mhc_post_fwd", "mhc_post_bwd", "mhc_weigh"), of_streams),
    **dict.fromkeys(("mhc_project", "mhc_gates", "mhc_head_gates"), of_coefficients),
    **dict.fromkeys(("sinkhorn_fwd", "sinkhorn_bwd"), of_sinkhorn),
    **dict.fromkeys(("indexer_scores", "indexer_scores_fp8"), of_scores),
    **{"indexer_scores_bwd_q": of_scores_backward, "indexer_scores_bwd_k": of_scores_backward_of_keys},
    **{"combine": of_combine, "delta": of_delta},
    **{"sum_window": of_window_sum, "sum_listed": of_list_sum, "sum_visible": of_visible_sum},
    **dict.fromkeys(("csa_fwd", "hca_fwd"), of_attention),
    **dict.fromkeys(("csa_bwd", "hca_bwd"), of_attention_backward),
}
