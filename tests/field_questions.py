"""What the second opinion over prime fields is asked of each kernel that ships: its reference, sizes and integer inputs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from field_steps import of_steps
from lemmata.kernels import compressor, mhc_pre_backward, mhc_project
from lemmata.kernels.combine import combine
from lemmata.kernels.sparse_attention_config import Config
from lemmata.proofs import mhc_backward
from lemmata.proofs import mhc_post_pre as mhc_between
from lemmata.proofs import mhc_pre as mhc_proofs
from lemmata.proofs.combine import added
from lemmata.proofs.engine.interpreter.second_opinion import run
from lemmata.proofs.suite import Proof
from lemmata.reference import compressor as compressor_reference
from lemmata.reference import csa as csa_reference
from lemmata.reference import hca as hca_reference
from lemmata.reference import indexer as indexer_reference
from lemmata.reference import indexer_loss as loss_reference
from lemmata.reference import mhc as mhc_reference
from lemmata.reference import sinkhorn as sinkhorn_reference
from lemmata.reference.topk_check import topk_check

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
    """A window whose first token is missing, a tile of entries that is not full, and scores that raise the maximum late."""
    ratio, listed = p.statics.get("ratio"), {"K": 140} if "csa" in p.contract.op else {}
    more = {n: p.statics[n] for n in ("window", "scale", "ratio") if n in p.statics}
    whole: Callable[..., Any] = hca_reference.hca if ratio else csa_reference.csa
    sizes = {"B": 1, "S": 2, "P": 125, "T": 150, **listed}
    asked: Question = {"sizes": sizes, "given": offsets(int(140 * ratio) if ratio else 126), "spread": 4.0}
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
    more = {n: p.statics[n] for n in ("window", "scale", "ratio", "blocks") if n in p.statics}
    sizes = {"B": 1, "S": 2, "P": 125, "T": 70, **({} if "ratio" in p.statics else {"K": 70})}
    given = offsets(int(p.statics.get("ratio", 2)) * 66)
    return {"reference": partial(parts, **more), "sizes": sizes, "given": given}


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
    """Streams of two tokens, after a layer."""
    of = {"mhc_post": mhc_reference.mhc_post, "mhc_post_bwd": mhc_reference.mhc_post_bwd}
    return {"reference": of[p.contract.op], "sizes": {"tokens": 2}}


def config_of(p: Proof) -> mhc_project.Config:
    """What the kernel is made for."""
    hc, hidden, chunks = (int(p.statics.get(name, 1)) for name in ("hc", "hidden", "chunks"))
    return mhc_project.Config(hc, hidden, head="head" in p.statics, chunks=chunks)


def of_projections(p: Proof) -> Question:
    """What is projected of two tokens, or the coefficients' gradients from that, as the claims have it."""
    of = {
        "mhc_project": mhc_proofs._project,
        "mhc_split": mhc_proofs._split,
        "mhc_multiply": mhc_proofs._multiply,
        "mhc_project_bwd": mhc_backward._project,
        "mhc_mix": mhc_between._mix,
        "mhc_normalise": mhc_backward._normalise,
        "mhc_head_normalise": mhc_backward._normalise,
        "mhc_gates_bwd": mhc_backward._gates,
        "mhc_head_gates_bwd": mhc_backward._gates,
        "mhc_add_gates": mhc_backward._add_gates,
    }
    return {
        "reference": of[p.contract.op](config_of(p))[-1],
        "sizes": {"tokens": 2} if "tokens" in p.contract.sizes else {},
    }


def of_weighing(p: Proof) -> Question:
    """Coefficients of two tokens, with Sinkhorn, and the sums of their streams; normalised from one layer to the next."""
    cfg = config_of(p)
    hc = cfg.hc

    def between(*inputs: Any) -> Any:
        *given, norm_weight = inputs
        y, post, comb, pre = reference(*given, with_pre=True)
        return mhc_reference.normed(y, norm_weight, cfg.norm_eps), post, comb, pre

    def reference(x: Any, sums: Any, squares: Any, scale: Any, base: Any, with_pre: bool = False) -> Any:
        mu = sums.sum(1) / (squares.sum(1) / cfg.columns + cfg.norm_eps).sqrt().unsqueeze(-1)
        pre = (mu[:, :hc] * scale[0] + base[:hc]).sigmoid() + cfg.eps
        y = (pre.unsqueeze(-1) * x).sum(1)
        if cfg.head:
            return y
        post = (mu[:, hc : 2 * hc] * scale[1] + base[hc : 2 * hc]).sigmoid() * 2
        logits = (mu[:, 2 * hc :] * scale[2] + base[2 * hc :]).unflatten(-1, (hc, hc))
        comb = sinkhorn_reference.sinkhorn(logits, cfg.iterations, cfg.eps)
        return (y, post, comb, pre) if with_pre else (y, post, comb)

    return {"reference": between if p.contract.op == "mhc_weigh_norm" else reference, "sizes": {"tokens": 2}}


def of_norm_backward(p: Proof) -> Question:
    """Gradients of the norm of a sum of streams, of two tokens."""

    def reference(grad_y: Any, x: Any, pre: Any, norm_weight: Any) -> Any:
        return mhc_reference.normed_bwd(grad_y, (pre.unsqueeze(-1) * x).sum(1), norm_weight, config_of(p).norm_eps)

    return {"reference": reference, "sizes": {"tokens": 2}}


def of_reading_backward(p: Proof) -> Question:
    """A tile of tokens and a part of another, in chunks that take turns, some of them empty; of streams of one tile's width."""
    cfg = replace(config_of(p), hidden=mhc_project.COLUMNS)
    tokens = 70

    def reference(grad_y: Any, x: Any, fn: Any, pre: Any, grad_u: Any, shrink: Any) -> Any:
        of_x = pre.unsqueeze(-1) * grad_y.unsqueeze(1) + shrink.unsqueeze(-1).unsqueeze(-1) * x
        of_x = of_x + (grad_u @ fn).unflatten(-1, (cfg.hc, cfg.hidden))
        turn = torch.arange(tokens) // 64 % cfg.chunks == torch.arange(cfg.chunks).unsqueeze(-1)
        return of_x, torch.einsum("ct,tm,tk->cmk", turn.double(), grad_u, x.flatten(1))

    asked = {"kernel": mhc_pre_backward.mhc_read_bwd(cfg), "contract": mhc_backward._read(cfg)[0]}
    return {
        **asked,
        "reference": reference,
        "sizes": {"tokens": tokens},
        "statics": {**p.statics, "hidden": cfg.hidden},
    }


def of_added_chunks(p: Proof) -> Question:
    """The sums of chunks for streams of one tile's width."""
    cfg = replace(config_of(p), hidden=mhc_project.COLUMNS)
    factory, contract, of = mhc_backward._add_chunks(cfg)
    statics = {**p.statics, "hidden": cfg.hidden}
    return {"kernel": factory(cfg), "contract": contract, "reference": of, "sizes": {}, "statics": statics}


def of_gate_sums(p: Proof) -> Question:
    """Three times sixteen tokens, the last not full: most of the chunks are empty."""
    tokens, tiles, chunks = 40, 3, 64

    def reference(grad_gates: Any, mu: Any) -> Any:
        tile, chunk = torch.arange(tokens) // 16, torch.arange(chunks).unsqueeze(-1)
        inside = ((tile >= tiles * chunk // chunks) & (tile < tiles * (chunk + 1) // chunks)).double()
        each = (torch.einsum("ct,tm->cm", inside, of) for of in (grad_gates, grad_gates * mu))
        return torch.cat([of.unsqueeze(1) for of in each], 1)

    return {"reference": reference, "sizes": {"tokens": tokens}}


def compressor_of(p: Proof) -> compressor.Config:
    """What the kernel is made for."""
    ratio, D, pairs, past = (int(p.statics[name]) for name in ("ratio", "D", "pairs", "past"))
    return compressor.Config(ratio, D, bool(p.statics["overlap"]), pairs, past)


def in_rows(cfg: compressor.Config, before: Any, of: Any) -> Any:
    """Return gradients of rows: own halves of all entries' blocks, first halves of the blocks before them; others stay."""
    parts = [before[:, : cfg.past, -cfg.D :], of[:, :, -cfg.ratio :].flatten(1, 2), before[:, -1:, -cfg.D :]]
    own = torch.cat(parts, 1)
    if not cfg.overlap:
        return own
    first = 1 - cfg.past // cfg.ratio  # entry whose block before is there
    read = of[:, first:, : cfg.ratio].flatten(1, 2)
    return torch.cat([torch.cat([read, before[:, read.shape[1] :, : cfg.D]], 1), own], -1)


def of_pooling(p: Proof) -> Question:
    """Two entries of a sequence's beginning and two of a later part, and a token that makes none; the last has no angles."""
    cfg, entries = compressor_of(p), 2
    sizes = {"B": 2, "S": cfg.past + entries * cfg.ratio + 1, "T": entries, "positions": 3 * cfg.ratio, "N": 1}
    asked = {"sizes": {name: sizes[name] for name in p.contract.sizes}, "given": offsets(0, 2 * cfg.ratio)}
    asked["statics"] = {**p.statics, "2*D": 2 * cfg.D}  # the width of rows of two halves, as shapes have it

    def given(rows: Any, gate: Any, ape: Any, offset: Any) -> compressor_reference.Given:
        return compressor_reference.Given(rows, gate, ape, rows[0, 0, : cfg.D], rows, offset, cfg.past)

    def pool(kv: Any, gate: Any, ape: Any, offset: Any) -> Any:
        return compressor_reference.pool(given(kv, gate, ape, offset), entries)

    def norm(pooled: Any, norm_weight: Any, rotation: Any, offset: Any) -> Any:
        root = ((pooled * pooled).sum(-1, keepdim=True) / cfg.D + cfg.eps).rsqrt()
        return turned(norm_weight * pooled * root, rotation, offset)

    def turned(y: Any, rotation: Any, offset: Any, *, inverse: bool = False) -> Any:
        ape = torch.zeros(cfg.ratio, 1)
        x = compressor_reference.Given(y, y, ape, y[0, 0], rotation, offset, cfg.past)
        return compressor_reference.rotate(y, x, inverse=inverse)

    def norm_bwd(grad_out: Any, pooled: Any, norm_weight: Any, rotation: Any, offset: Any) -> Any:
        root = ((pooled * pooled).sum(-1, keepdim=True) / cfg.D + cfg.eps).rsqrt()
        g = turned(grad_out, rotation, offset, inverse=True)
        mean = (pooled * norm_weight * g).sum(-1, keepdim=True) / cfg.D
        return root * norm_weight * g - pooled * root * root * root * mean, g * pooled * root

    def pool_bwd(of_pooled: Any, kv: Any, gate: Any, ape: Any, offset: Any, *grads: Any) -> Any:
        of_candidates = compressor_reference.through_pool(of_pooled, pool(kv, gate, ape, offset))
        return tuple(in_rows(cfg, before, of) for before, of in zip(grads, of_candidates, strict=True))

    def few_bwd(grad_out: Any, pooled: Any, *tensors: Any) -> Any:
        x, grads = compressor_reference.Given._make((*tensors[:6], cfg.past)), tensors[6:]
        of_pooled, of_weight = norm_bwd(grad_out, pooled, x.norm_weight, x.rotation, x.offset)
        of_candidates = compressor_reference.through_pool(of_pooled, compressor_reference.pool(x, entries))
        parts = torch.cat([of_candidates[1].sum(1), of_weight.sum(1, keepdim=True)], 1).unsqueeze(1)
        return *(in_rows(cfg, before, of) for before, of in zip(grads, of_candidates, strict=True)), parts

    def whole(kv: Any, gate: Any, ape: Any, norm_weight: Any, rotation: Any, offset: Any) -> Any:
        pooled = pool(kv, gate, ape, offset).total
        return norm(pooled, norm_weight, rotation, offset), pooled

    of = {
        "compress_fwd": whole,
        "compress_pool": lambda *x: pool(*x).total,
        "compress_norm": norm,
        "compress_norm_bwd": norm_bwd,
        "compress_few_bwd": few_bwd,
        "compress_pool_bwd": pool_bwd,
    }
    return {**asked, "reference": of[p.contract.op]}


def of_listed_scores(p: Proof) -> Question:
    """A tile of slots and a part of another; a few of them name no entry."""

    def reference(q: Any, k: Any, weights: Any, indices: Any) -> Any:
        return loss_reference.scores_of(q, weights, csa_reference._selected(k, indices)).unsqueeze(2)

    return {"reference": reference, "sizes": {"B": 1, "S": 2, "T": 90, "K": 140}}


def of_listed_masses(p: Proof) -> Question:
    """The same, of attention's heads: Σ exp(z) / (exp lse + exp sink) over those of a block, as a logarithm."""
    scale, blocks = p.statics["scale"], int(p.statics["blocks"])

    def reference(core_q: Any, compressed_kv: Any, indices: Any, sink: Any, lse: Any) -> Any:
        entries = csa_reference._selected(compressed_kv, indices)
        z = loss_reference._dots(core_q, entries) * scale - (lse.exp() + sink.exp()).log().unsqueeze(-1)
        mass = z.exp().unflatten(2, (blocks, 64)).sum(3)
        return torch.where(entries.seen.unsqueeze(2), mass.log(), -math.inf)

    return {"reference": reference, "sizes": {"B": 1, "S": 2, "T": 90, "K": 140}}


def of_rows(p: Proof) -> Question:
    """Two tiles, the second not full, of slots that are all listed: the softmax of the scores less the teacher's weights."""

    def gradient(grad: Any, log_mass: Any, scores: Any) -> Any:
        mass, student = log_mass.exp().sum(2), scores.squeeze(2).exp()
        of_student, of_teacher = (x / x.sum(-1, keepdim=True) for x in (student, mass))
        return (of_student - of_teacher) * grad.unsqueeze(-1)

    def loss(log_mass: Any, scores: Any) -> Any:
        mass, student = log_mass.exp().sum(2), scores.squeeze(2).exp()
        total, all_of = mass.sum(-1, keepdim=True), student.sum(-1, keepdim=True)
        return (mass / total * (mass.log() - total.log() - scores.squeeze(2) + all_of.log())).sum(-1)

    return {"reference": gradient if len(p.contract.inputs) == 3 else loss, "sizes": {"B": 1, "S": 2, "K": 700}}


def of_listed_gradients(p: Proof) -> Question:
    """The same, with gradients of the scores."""

    def reference(grad: Any, q: Any, k: Any, weights: Any, indices: Any) -> Any:
        rows = csa_reference._selected(k, indices)
        of_q, of_rows, of_weights = loss_reference.scores_bwd(grad, q, weights, rows)
        return of_q, of_weights, of_rows.unsqueeze(3)

    return {"reference": reference, "sizes": {"B": 1, "S": 2, "T": 90, "K": 140}}


QUESTIONS: dict[str, Callable[[Proof], Question]] = {
    **dict.fromkeys(("mhc_post_fwd", "mhc_post_bwd"), of_streams),
    **dict.fromkeys(
        ("mhc_project", "mhc_split", "mhc_multiply", "mhc_project_bwd", "mhc_mix", "mhc_add_gates"), of_projections
    ),
    **dict.fromkeys(("mhc_normalise", "mhc_head_normalise"), of_projections),
    **dict.fromkeys(("mhc_gates_bwd", "mhc_head_gates_bwd"), of_projections),
    **dict.fromkeys(("mhc_weigh", "mhc_head_weigh", "mhc_weigh_norm"), of_weighing),
    "mhc_norm_bwd": of_norm_backward,
    **{"mhc_read_bwd": of_reading_backward, "mhc_add_chunks": of_added_chunks, "mhc_sum_gates": of_gate_sums},
    "topk_check": lambda _: {"reference": topk_check, "sizes": {"R": 1, "T": 9}},
    **dict.fromkeys(("sinkhorn_fwd", "sinkhorn_bwd"), of_sinkhorn),
    **dict.fromkeys(("indexer_scores", "indexer_scores_fp8"), of_scores),
    **{"indexer_scores_bwd_q": of_scores_backward, "indexer_scores_bwd_k": of_scores_backward_of_keys},
    **dict.fromkeys(("compress_fwd", "compress_pool", "compress_norm", "compress_norm_bwd"), of_pooling),
    **dict.fromkeys(("compress_few_bwd", "compress_pool_bwd"), of_pooling),
    **dict.fromkeys(("compress_step", "compress_step_pool", "compress_step_norm", "compress_keep"), of_steps),
    **{"loss_teacher": of_listed_masses, "loss_student": of_listed_scores, "loss_bwd_listed": of_listed_gradients},
    **dict.fromkeys(("loss_rows", "loss_scores_bwd"), of_rows),
    **{"combine": of_combine, "delta": of_delta},
    **{"sum_window": of_window_sum, "sum_listed": of_list_sum, "sum_visible": of_visible_sum},
    **dict.fromkeys(("csa_fwd", "hca_fwd"), of_attention),
    **dict.fromkeys(("csa_bwd", "hca_bwd"), of_attention_backward),
}
