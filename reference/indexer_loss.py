"""The loss that trains the Lightning Indexer: how far its softmax is from attention (DeepSeek-V3.2's report, section 2.1.1).

Each query t has candidates: the entries that a list names, or, while attention is dense, all that it sees. The teacher is
attention's joint softmax over the window, the entries and the sink, summed over the heads and normalised over the candidates.
The student is the softmax of the indexer's scores I (``reference/indexer.py``) over the same candidates:

    z_hj = scale (q_h · kv_j),    L_h = log(exp lse_h + exp sink_h)

    P_j = Σ_h exp(z_hj - L_h) / Σ_{h,i} exp(z_hi - L_h),    S = softmax(I)

    loss = KL(P ‖ S) = Σ_j P_j (log P_j - log S_j)

``lse`` is that of all keys, without the sink, as attention returns it. A query without candidates has loss 0, and so has one
whose teacher gives all of them no weight: where the sink is +inf for all heads, or lse is. A candidate that a list names twice
counts twice, in teacher and student, as it does in attention.

The teacher has no gradient. That of a score is dI_j = (S_j - P_j) dloss; what follows is ``scores_bwd``.

The arithmetic is that of the weights' dtype, fp32 or fp64.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from . import csa, hca
from .attention import BF16, F32, SIZES, STATICS, Keys, as_values
from .contract import Contract, Size, TensorSpec
from .indexer import I32, SCORES

_STATICS = {"H": SCORES.statics["H"], "D": SCORES.statics["D"], "core_H": STATICS["H"], "core_D": STATICS["D"]}
_GRAD = TensorSpec("grad_out", "B S", (F32,))
_OUT = (TensorSpec("out", "B S", (F32,)),)
_GRADIENTS = (
    TensorSpec("grad_q", "B S H D", (BF16,)),
    TensorSpec("grad_k", "B T D", (BF16,)),
    TensorSpec("grad_weights", "B S H", (F32,)),
)
_INDEXER = SCORES.inputs[:3]
_QUERIES = TensorSpec("core_q", "B S core_H core_D", (BF16,))
_ENTRIES = TensorSpec("compressed_kv", "B T core_D", (BF16,))
_INDICES = TensorSpec("indices", "B S K", (I32,))
_SINK = TensorSpec("sink", "core_H", (F32,))
_LSE = TensorSpec("lse", "B S core_H", (F32,))

LISTED = Contract(
    "indexer_loss",
    {name: SIZES[name] for name in ("B", "S", "T")} | {"K": Size(0, 8192)},
    _STATICS | {"scale": STATICS["scale"]},
    (*_INDEXER, _QUERIES, _ENTRIES, _INDICES, _SINK, _LSE),
    _OUT,
    ({"B": 3, "S": 37, "T": 1009, "K": 41}, {"B": 1, "S": 2**20, "T": 2**18, "K": 2048}),
)
DENSE = replace(
    LISTED,
    sizes=SCORES.sizes,
    statics=_STATICS | {"ratio": SCORES.statics["ratio"], "scale": STATICS["scale"]},
    inputs=(*_INDEXER, _QUERIES, _ENTRIES, _SINK, _LSE, SCORES.tensor("offset")),
    probes=SCORES.probes,
)
LISTED_BWD = replace(LISTED, op="indexer_loss_bwd", inputs=(_GRAD, *LISTED.inputs), outputs=_GRADIENTS)
DENSE_BWD = replace(DENSE, op="indexer_loss_bwd", inputs=(_GRAD, *DENSE.inputs), outputs=_GRADIENTS)


def _log_normalised(x: Tensor) -> Tensor:
    """Return x - log Σ exp x over the last dimension; all -inf where all of x is, or there is none."""
    total = x.logsumexp(-1, keepdim=True)
    return x - torch.where(total == -math.inf, 0.0, total)


def log_teacher(core_q: Tensor, entries: Keys, sink: Tensor, lse: Tensor, scale: float) -> Tensor:
    """Return log P, [B, S, n]; as it is taken of logarithms, weights that are small in attention lose nothing."""
    return _log_normalised(log_masses(core_q, entries, sink, lse, scale).squeeze(2))


def log_masses(core_q: Tensor, entries: Keys, sink: Tensor, lse: Tensor, scale: float, blocks: int = 1) -> Tensor:
    """Return log Σ exp(z - L) over the heads of each block of them, [B, S, blocks, n], -inf where a slot has no candidate.

    L = log(exp lse + exp sink), so that exp(z - L) is what a head of attention weighs an entry with.
    """
    z = scale * _dots(core_q.type_as(sink), entries) - torch.logaddexp(lse, sink).unsqueeze(-1)
    of_blocks: Tensor = z.unflatten(2, (blocks, z.shape[2] // blocks))  # type: ignore[no-untyped-call]
    return torch.where(entries.seen.unsqueeze(2), of_blocks.logsumexp(3), -math.inf)


def _dots(q: Tensor, keys: Keys) -> Tensor:
    """Return q[b,t,h] · k_j, 0 where j is no candidate, [B, S, H, n]."""
    return torch.where(keys.seen.unsqueeze(2), q @ keys.of_each_query(q).mT, 0.0)


def scores_of(q: Tensor, weights: Tensor, keys: Keys) -> Tensor:
    """Return the scores I, [B, S, n], -inf where a slot has no candidate."""
    scores = (weights.unsqueeze(-1) * _dots(q.type_as(weights), keys).relu()).sum(2)
    return torch.where(keys.seen, scores, -math.inf)


def log_student(q: Tensor, weights: Tensor, keys: Keys) -> Tensor:
    """Return log S, [B, S, n]."""
    return _log_normalised(scores_of(q, weights, keys))


def divergence(log_p: Tensor, log_s: Tensor) -> Tensor:
    """Return KL(P ‖ S), [B, S]; 0 log 0 is 0, and what rounding makes negative is 0."""
    some = log_p > -math.inf
    more = torch.where(some, log_p, 0.0) - torch.where(some, log_s, 0.0)
    return (log_p.exp() * more).sum(-1).clamp(min=0)


def divergence_bwd(grad_out: Tensor, log_p: Tensor, log_s: Tensor) -> Tensor:
    """Return the gradient of the scores, [B, S, n]: 0 where a slot has no candidate, or P is no distribution."""
    return torch.where(log_p > -math.inf, (log_s.exp() - log_p.exp()) * grad_out.unsqueeze(-1), 0.0)


def scores_bwd(grad_scores: Tensor, q: Tensor, weights: Tensor, keys: Keys) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, of the rows of the keys and of the weights, from that of the scores of candidates.

    With dots = q · k: dw = Σ_j dI relu(dots); ddots = dI w where dots > 0, else 0; dq = Σ_j ddots k; and a row that each
    query has of its own gets Σ_h ddots q, [B, S, n, D], one that all share the sum of these over the queries, [B, n, D].
    """
    wide, grad = q.type_as(weights), grad_scores.unsqueeze(2)
    dots = _dots(wide, keys)
    grad_weights = torch.where(dots > 0, grad * dots, 0.0).sum(-1)
    grad_dots = torch.where(dots > 0, grad * weights.unsqueeze(-1), 0.0)
    grad_q = grad_dots @ as_values(keys, wide)
    grad_rows = grad_dots.mT @ wide if keys.rows.ndim == 4 else torch.einsum("bshn,bshd->bnd", grad_dots, wide)
    return grad_q.type_as(q), grad_rows, grad_weights


def indexer_loss(
    q: Tensor,
    k: Tensor,
    weights: Tensor,
    core_q: Tensor,
    compressed_kv: Tensor,
    indices: Tensor,
    sink: Tensor,
    lse: Tensor,
    scale: float,
) -> Tensor:
    """Return the loss over the entries that the valid indices name, [B, S]; the formula of this module's docstring."""
    log_p = log_teacher(core_q, csa._selected(compressed_kv, indices), sink, lse, scale)
    return divergence(log_p, log_student(q, weights, csa._selected(k, indices)))


def indexer_loss_parts(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    weights: Tensor,
    core_q: Tensor,
    compressed_kv: Tensor,
    indices: Tensor,
    sink: Tensor,
    lse: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q and weights, and between them each query's parts of that of k, by slots of the indices."""
    keys = csa._selected(k, indices)
    log_p = log_teacher(core_q, csa._selected(compressed_kv, indices), sink, lse, scale)
    return scores_bwd(divergence_bwd(grad_out, log_p, log_student(q, weights, keys)), q, weights, keys)


def indexer_loss_bwd(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    weights: Tensor,
    core_q: Tensor,
    compressed_kv: Tensor,
    indices: Tensor,
    sink: Tensor,
    lse: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and weights, in closed form."""
    core = core_q, compressed_kv, indices, sink, lse
    grad_q, of_rows, grad_weights = indexer_loss_parts(grad_out, q, k, weights, *core, scale)
    return grad_q, csa._selected_bwd(of_rows, k, indices).type_as(k), grad_weights


def indexer_loss_dense(
    q: Tensor,
    k: Tensor,
    weights: Tensor,
    core_q: Tensor,
    compressed_kv: Tensor,
    sink: Tensor,
    lse: Tensor,
    offset: Tensor,
    ratio: int,
    scale: float,
) -> Tensor:
    """Return the loss over all entries that a query sees, j < (offset + t + 1) // ratio, [B, S]."""
    S = q.shape[1]
    log_p = log_teacher(core_q, hca._entries(compressed_kv, S, offset, ratio), sink, lse, scale)
    return divergence(log_p, log_student(q, weights, hca._entries(k, S, offset, ratio)))


def indexer_loss_dense_parts(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    weights: Tensor,
    core_q: Tensor,
    compressed_kv: Tensor,
    sink: Tensor,
    lse: Tensor,
    offset: Tensor,
    ratio: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, of k as sums in the dtype of the weights, and of weights."""
    S = q.shape[1]
    keys = hca._entries(k, S, offset, ratio)
    log_p = log_teacher(core_q, hca._entries(compressed_kv, S, offset, ratio), sink, lse, scale)
    grad_scores = divergence_bwd(grad_out, log_p, log_student(q, weights, keys))
    return scores_bwd(grad_scores, q, weights, keys)


def indexer_loss_dense_bwd(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    weights: Tensor,
    core_q: Tensor,
    compressed_kv: Tensor,
    sink: Tensor,
    lse: Tensor,
    offset: Tensor,
    ratio: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and weights, in closed form."""
    core = core_q, compressed_kv, sink, lse, offset
    grad_q, of_rows, grad_weights = indexer_loss_dense_parts(grad_out, q, k, weights, *core, ratio, scale)
    return grad_q, of_rows.type_as(k), grad_weights
