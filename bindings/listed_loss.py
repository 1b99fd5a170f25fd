"""The indexer's loss over listed entries on a GPU: kernels, for as many queries at a time as a workspace holds.

No bit of a result depends on the size of the workspace: a query's loss is its own, and the parts of the gradients of keys are
added up in fp32 in the order of the queries.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from . import chunks
from .gradients import head_blocks, listed
from .registry import lazily

_WORKSPACE = 64 * 2**20  # bytes of the numbers of slots that the loss goes through
_NARROWEST = 64  # columns of a row in the kernels, which zeros fill up

log_masses = lazily("lemmata.kernels.indexer_loss", "log_masses")
_listed_scores = lazily("lemmata.kernels.indexer_loss", "listed_scores")
losses = lazily("lemmata.kernels.indexer_loss_rows", "losses")
scores_gradient = lazily("lemmata.kernels.indexer_loss_rows", "scores_gradient")
_gradients = lazily("lemmata.kernels.indexer_loss_backward", "gradients")
_add_listed = lazily("lemmata.kernels.gradient_sums", "add_listed")


def idle(*args: Tensor | float) -> bool:
    """Return whether a call of the loss or of its gradients has no query, entry or slot."""
    return any(not x.numel() for x in args if isinstance(x, Tensor))


def _widened(rows: Tensor) -> Tensor:
    """Return the rows with columns enough, contiguous; wide ones as they are."""
    missing = _NARROWEST - rows.shape[-1]
    return pad(rows, (0, missing)) if missing > 0 else rows.contiguous()


def forward(
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
    """Return the loss of each query, [B, S]."""
    q, k, core_kv = _widened(q), _widened(k), compressed_kv.contiguous()
    out = weights.new_empty(q.shape[:2])
    numbers = indices.shape[2] * (1 + head_blocks(core_q.shape[2]))
    for b, s in chunks.groups(q, 0, max(_WORKSPACE // (4 * numbers), 1)):
        log_mass = log_masses(core_q[b, s], core_kv[b], indices[b, s], sink, lse[b, s], scale)
        out[b, s] = losses(log_mass, _listed_scores(q[b, s], k[b], weights[b, s], indices[b, s]))
    return out


def backward(
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
    """Return the gradients of q, k and weights."""
    wide_q, wide_k, core_kv = _widened(q), _widened(k), compressed_kv.contiguous()
    grad_q, grad_weights = q.new_empty(q.shape), weights.new_empty(weights.shape)
    total = weights.new_zeros(wide_k.shape)
    start = torch.zeros(q.shape[0], dtype=torch.int32, device=q.device)
    for g in listed(wide_q, start, indices.contiguous(), k.shape[1], 0):
        slots = g.of(indices)
        log_mass = log_masses(g.of(core_q), core_kv[g.batch], slots, sink, g.of(lse), scale)
        student = g.of(wide_q), wide_k[g.batch], g.of(weights), slots
        grad_scores = scores_gradient(g.of(grad_out), log_mass, _listed_scores(*student))
        of_q, g.of(grad_weights)[:], parts = _gradients(grad_scores, *student)
        g.of(grad_q)[:] = of_q[..., : q.shape[-1]]
        assert g.listing is not None
        _add_listed(parts, *g.listing, total[g.batch])
    return grad_q, total[..., : k.shape[-1]].to(k.dtype, memory_format=torch.contiguous_format, copy=True), grad_weights
