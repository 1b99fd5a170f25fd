"""The Lightning Indexer of DeepSeek-V4: which compressed entries a query attends to (arXiv 2606.19348, section 2.3.1).

For queries q [B, S, H, D], keys k [B, T, D] and head weights w [B, S, H], the score of entry j for query t is

    I[b,t,j] = Σ_h w[b,t,h] relu(q[b,t,h] · k[b,j])   for j < visible(b,t),  -inf elsewhere

    visible(b,t) = (offset[b] + t + 1) // ratio

Entry j stands for the tokens from ratio·j to ratio·j + ratio - 1 and is seen from the last of them on; ``offset`` is the
absolute position of a sequence's first query. The released code of DeepSeek-V4 sees them so; the paper's s < ⌊t/m⌋
counts tokens from 1. Of keys in fp8, each with a scale s ≥ 0, the score is multiplied by s: s relu(x) = relu(s x).

The arithmetic is that of the weights' dtype, fp32 or fp64.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .contract import Contract, Elements, Size, Static, TensorSpec
from .topk import topk as largest

BF16, FP8, F32, I32 = torch.bfloat16, torch.float8_e4m3fn, torch.float32, torch.int32

OFFSETS = 2**30  # positions and query counts below this: their sums fit into int32

_SIZES = {"B": Size(0, 65535), "S": Size(0, OFFSETS - 1), "T": Size(0, 2**20)}
_STATICS = {"H": Static.one_of(8, 16, 32, 64), "D": Static.one_of(32, 64, 128), "ratio": Static(int, 1, 65536)}
_PROBES = ({"B": 3, "S": 37, "T": 1009}, {"B": 1, "S": 2**20, "T": 2**18})


def _queries_and_keys(dtype: torch.dtype) -> tuple[TensorSpec, ...]:
    return (
        TensorSpec("q", "B S H D", (dtype,)),
        TensorSpec("k", "B T D", (dtype,)),
        TensorSpec("weights", "B S H", (F32,)),
    )


_K_SCALE = TensorSpec("k_scale", "B T", (F32,), Elements(nonnegative=True))
_OFFSET = TensorSpec("offset", "B", (I32,), Elements(0, OFFSETS))
_OUT = (TensorSpec("out", "B S T", (F32,)),)

SCORES = Contract("indexer_scores", _SIZES, _STATICS, (*_queries_and_keys(BF16), _OFFSET), _OUT, _PROBES)
SCORES_FP8 = replace(SCORES, inputs=(*_queries_and_keys(FP8), _K_SCALE, _OFFSET))
SCORES_BWD = Contract(
    "indexer_scores_bwd",
    _SIZES,
    _STATICS,
    (TensorSpec("grad_out", "B S T", (F32,)), *SCORES.inputs),
    (
        TensorSpec("grad_q", "B S H D", (BF16,)),
        TensorSpec("grad_k", "B T D", (BF16,)),
        TensorSpec("grad_weights", "B S H", (F32,)),
    ),
    _PROBES,
)
SELECT = replace(
    SCORES,
    op="indexer_topk",
    statics=_STATICS | {"topk": Static(int, 1, 2048), "workspace": Static(int, 1, 2**40)},
    outputs=(TensorSpec("out", "B S topk", (I32,), Elements(-1, "T")),),
)
SELECT_FP8 = replace(SELECT, inputs=SCORES_FP8.inputs)


def visible(offset: Tensor, S: int, ratio: int) -> Tensor:
    """Return how many entries each query sees, [B, S]; the cache may hold fewer."""
    return (offset.unsqueeze(-1) + torch.arange(S, device=offset.device) + 1) // ratio


def _seen(offset: Tensor, S: int, T: int, ratio: int) -> Tensor:
    """Return whether a query sees an entry, [B, S, T]."""
    return torch.arange(T, device=offset.device) < visible(offset, S, ratio).unsqueeze(-1)


def _dots(q: Tensor, k: Tensor) -> Tensor:
    """Return q[b,t,h] · k[b,j], [B, S, H, T]."""
    return q @ k.unsqueeze(1).mT


def _weighted(q: Tensor, k: Tensor, weights: Tensor) -> Tensor:
    """Return Σ_h w relu(q · k), [B, S, T]."""
    dots = _dots(q.type_as(weights), k.type_as(weights))
    return (weights.unsqueeze(-1) * dots.relu()).sum(-2)


def indexer_scores(q: Tensor, k: Tensor, weights: Tensor, offset: Tensor, ratio: int = 4) -> Tensor:
    """Return the scores, [B, S, T]; the formula of this module's docstring."""
    seen = _seen(offset, q.shape[1], k.shape[1], ratio)
    return torch.where(seen, _weighted(q, k, weights), float("-inf"))


def indexer_scores_fp8(
    q: Tensor, k: Tensor, weights: Tensor, k_scale: Tensor, offset: Tensor, ratio: int = 4
) -> Tensor:
    """Return the scores of queries and keys in fp8; ``k_scale`` [B, T] belongs to the keys, a query's scale to its weights."""
    seen = _seen(offset, q.shape[1], k.shape[1], ratio)
    return torch.where(seen, k_scale.unsqueeze(1) * _weighted(q, k, weights), float("-inf"))


def indexer_scores_bwd(
    grad_out: Tensor, q: Tensor, k: Tensor, weights: Tensor, offset: Tensor, ratio: int = 4
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and weights, in closed form.

    With z = q · k, dI the gradient of the scores, 0 where an entry is not seen, and g = Σ_j dI k over the entries with z > 0:
    dq = w g; dw = q · g, which is Σ_j dI relu(z); dk = Σ_{t,h} dI w q over the queries and heads with z > 0. An entry that no
    query sees counts as 0, even if it is NaN.
    """
    seen = _seen(offset, q.shape[1], k.shape[1], ratio)
    seen_by_last = torch.arange(k.shape[1], device=k.device) < ((offset.long() + q.shape[1]) // ratio).unsqueeze(-1)
    wide_q = q.type_as(weights)
    wide_k = torch.where(seen_by_last.unsqueeze(-1), k.type_as(weights), 0.0)  # the last query sees what any sees
    grad = torch.where(seen, grad_out, 0.0).unsqueeze(2)
    active = torch.where(_dots(wide_q, wide_k) > 0, grad, 0.0)
    sums = active @ wide_k.unsqueeze(1)
    grad_q = weights.unsqueeze(-1) * sums
    grad_k = torch.einsum("bsht,bshd->btd", active, weights.unsqueeze(-1) * wide_q)
    return grad_q.type_as(q), grad_k.type_as(k), (wide_q * sums).sum(-1)


def indexer_topk(
    q: Tensor, k: Tensor, weights: Tensor, k_scale: Tensor | None, offset: Tensor, ratio: int, topk: int
) -> Tensor:
    """Return the entries that each query takes, [B, S, topk]: all that it sees if they are at most ``topk``, else the best."""
    if k_scale is None:
        scores = indexer_scores(q, k, weights, offset, ratio)
    else:
        scores = indexer_scores_fp8(q, k, weights, k_scale, offset, ratio)
    lengths = visible(offset, q.shape[1], ratio).clamp(0, k.shape[1])
    best = largest(scores.flatten(0, 1), lengths.flatten(), topk).view(*q.shape[:2], topk)
    return torch.where(lengths.unsqueeze(-1) <= topk, everything(lengths, topk), best)


def everything(lengths: Tensor, topk: int) -> Tensor:
    """Return the indices 0 to length - 1, then -1, [B, S, topk]: what a query takes that sees no more than topk."""
    first = torch.arange(topk, dtype=I32, device=lengths.device)
    return torch.where(first < lengths.unsqueeze(-1), first, -1)
