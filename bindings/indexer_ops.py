"""The torch ops of the Lightning Indexer: what runs on a CPU and on a GPU, on a batch and on packed documents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..reference import indexer as reference
from ..reference.packed import packed
from . import chunks, flops
from .packed import Packed
from .registry import define, lazily
from .vmap import merged

_KERNELS = "lemmata.kernels.indexer"
_scores_kernel, _fp8_kernel = lazily(_KERNELS, "scores"), lazily(_KERNELS, "scores_fp8")
_bwd_kernel = lazily("lemmata.kernels.indexer_backward", "scores_bwd")
_topk_kernel = lazily("lemmata.kernels.topk", "select_pieces")
# heads and width for which TileLang fails to compile the backward, and the heads with which it does
_FILLED_UP = {(16, 128): 32, (32, 64): 64}


def scores_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, weights: Tensor, offset: Tensor, ratio: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Run both kernels of the backward on CUDA tensors; return the gradients of q, of k in fp32, and of weights.

    Zeros, which add nothing, fill up heads where TileLang does not compile it for fewer.
    """
    heads, width = q.shape[2:]
    more = _FILLED_UP.get((heads, width), heads) - heads
    if not more:
        return _bwd_kernel(grad_out, q, k, weights, offset, ratio)  # type: ignore[no-any-return]
    q, weights = pad(q, (0, 0, 0, more)), pad(weights, (0, more))
    grad_q, grad_k, grad_weights = _bwd_kernel(grad_out, q, k, weights, offset, ratio)
    return grad_q[:, :, :heads].contiguous(), grad_k, grad_weights[..., :heads].contiguous()


def _scores_bwd_cuda(
    grad_out: Tensor, q: Tensor, k: Tensor, weights: Tensor, offset: Tensor, ratio: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the same; round the gradient of k to its dtype."""
    grad_q, grad_k, grad_weights = scores_backward(grad_out, q, k, weights, offset, ratio)
    return grad_q, grad_k.to(k.dtype), grad_weights


def _select_cuda(
    q: Tensor,
    k: Tensor,
    weights: Tensor,
    k_scale: Tensor | None,
    offset: Tensor,
    ratio: int,
    topk: int,
    workspace: int,
    unscored: int = 0,
) -> Tensor:
    """Run both kernels, on as many queries at a time as the workspace holds the scores of."""
    B, S = q.shape[:2]
    if k.shape[1] <= topk:
        return reference.everything(reference.visible(offset, S, ratio).clamp_(0, k.shape[1]), topk)
    rows = chunks.held(k, topk, workspace)
    if rows >= B * S and not unscored:
        return _best((q, k, weights, k_scale, offset), offset if S == 1 else _positions(offset, S), ratio, topk)
    out, positions = q.new_empty((B, S, topk), dtype=torch.int32), _positions(offset, S)
    seen = reference.visible(offset, unscored, ratio)
    out[:, :unscored] = reference.everything(seen.clamp_(0, k.shape[1]), topk)
    for b, s in chunks.groups(q, unscored, rows):
        scale = None if k_scale is None else k_scale[b]
        part = q[b, s], k[b], weights[b, s], scale, offset[b] + s.start
        out[b, s] = _best(part, positions[b, s], ratio, topk)
    return out


def _positions(offset: Tensor, S: int) -> Tensor:
    """Return the position of each query, int32 [B, S]."""
    return offset.unsqueeze(-1) + torch.arange(S, dtype=torch.int32, device=offset.device)


def _best(x: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor], positions: Tensor, ratio: int, topk: int) -> Tensor:
    """Return the entries of the highest scores, or all that are seen; the scores are freed."""
    q, k, weights, k_scale, offset = x
    if k_scale is None:
        scores = _scores_kernel(q, k, weights, offset, ratio)
    else:
        scores = _fp8_kernel(q, k, weights, k_scale, offset, ratio)
    rows = positions if positions.ndim == 1 else positions.reshape(-1)
    best: Tensor = _topk_kernel(scores.view(-1, k.shape[1]), rows, topk, ratio)
    return best if q.shape[1] == 1 else best.view(*q.shape[:2], topk)


def _fake_scores(q: Tensor, k: Tensor, weights: Tensor, offset: Tensor, ratio: int) -> Tensor:
    reference.SCORES.check(q, k, weights, offset, ratio=ratio)
    return weights.new_empty((*q.shape[:2], k.shape[1]))


def _fake_fp8(q: Tensor, k: Tensor, weights: Tensor, k_scale: Tensor, offset: Tensor, ratio: int) -> Tensor:
    reference.SCORES_FP8.check(q, k, weights, k_scale, offset, ratio=ratio)
    return weights.new_empty((*q.shape[:2], k.shape[1]))


def _fake_bwd(
    grad_out: Tensor, q: Tensor, k: Tensor, weights: Tensor, offset: Tensor, ratio: int
) -> tuple[Tensor, Tensor, Tensor]:
    reference.SCORES_BWD.check(grad_out, q, k, weights, offset, ratio=ratio)
    return q.new_empty(q.shape), k.new_empty(k.shape), weights.new_empty(weights.shape)


def _fake_select(
    q: Tensor,
    k: Tensor,
    weights: Tensor,
    k_scale: Tensor | None,
    offset: Tensor,
    ratio: int,
    topk: int,
    workspace: int,
    unscored: int = 0,
) -> Tensor:
    contract = reference.SELECT if k_scale is None else reference.SELECT_FP8
    inputs = (t for t in (q, k, weights, k_scale, offset) if t is not None)
    contract.check(*inputs, ratio=ratio, topk=topk, workspace=workspace)
    return q.new_empty((*q.shape[:2], topk), dtype=torch.int32)


def _idle(q: Tensor, k: Tensor, *_: object) -> bool:
    return not (q.numel() and k.numel())


def _nothing_to_sum(_: Tensor, q: Tensor, k: Tensor, *__: object) -> bool:
    return _idle(q, k)


_bwd = define(
    "indexer_scores_bwd",
    "(Tensor grad_out, Tensor q, Tensor k, Tensor weights, Tensor offset, int ratio)"
    " -> (Tensor grad_q, Tensor grad_k, Tensor grad_weights)",
    reference=chunks.scores_bwd,
    kernel=_scores_bwd_cuda,
    fake=_fake_bwd,
    idle=_nothing_to_sum,
    vmap=merged,
    flops=flops.scores_bwd,
)
scores_fwd = define(
    "indexer_scores_fwd",
    "(Tensor q, Tensor k, Tensor weights, Tensor offset, int ratio) -> (Tensor out)",
    reference=chunks.scores,
    kernel=(_KERNELS, "scores"),
    fake=_fake_scores,
    idle=_idle,
    vmap=merged,
    gradient=_bwd,
    flops=flops.scores,
)
fp8_fwd = define(
    "indexer_scores_fp8_fwd",
    "(Tensor q, Tensor k, Tensor weights, Tensor k_scale, Tensor offset, int ratio) -> Tensor",
    reference=chunks.scores_fp8,
    kernel=(_KERNELS, "scores_fp8"),
    fake=_fake_fp8,
    idle=_idle,
    vmap=merged,
    flops=flops.scores,
)
topk_fwd = define(
    "indexer_topk_fwd",
    "(Tensor q, Tensor k, Tensor weights, Tensor? k_scale, Tensor offset, int ratio, int topk, int workspace,"
    " SymInt unscored=0) -> Tensor",
    reference=chunks.select,
    kernel=_select_cuda,
    fake=_fake_select,
    idle=_idle,
    vmap=merged,
    flops=flops.select,
)
_packed_bwd = Packed(packed(reference.SCORES_BWD), _bwd, "int ratio").bind(
    "indexer_scores_packed_bwd", flops.scores_bwd
)
packed_scores = {
    reference.BF16: Packed(packed(reference.SCORES), scores_fwd, "int ratio").bind(
        "indexer_scores_packed_fwd", flops.scores, gradient=_packed_bwd.op
    ),
    reference.FP8: Packed(packed(reference.SCORES_FP8), fp8_fwd, "int ratio").bind(
        "indexer_scores_fp8_packed_fwd", flops.scores
    ),
}
_STATICS = "int ratio, int topk, int workspace, SymInt unscored=0"


def _select_bf16(q: Tensor, k: Tensor, weights: Tensor, *more: Any) -> Tensor:
    return topk_fwd(q, k, weights, None, *more)  # type: ignore[no-any-return]


def _flops_of_bf16(q: flops.Shape, k: flops.Shape, weights: flops.Shape, *more: Any, **_: Any) -> int:
    return flops.select(q, k, weights, None, *more)


packed_topk = {
    reference.BF16: Packed(packed(reference.SELECT), _select_bf16, _STATICS).bind(
        "indexer_topk_packed_fwd", _flops_of_bf16
    ),
    reference.FP8: Packed(packed(reference.SELECT_FP8), topk_fwd, _STATICS).bind(
        "indexer_topk_fp8_packed_fwd", flops.select
    ),
}
