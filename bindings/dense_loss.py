"""The indexer's loss over all that a query sees, on a GPU: kernels, for as many queries at a time as a workspace holds.

The student's scores are those of ``lemmata.indexer_scores``, and so are their gradients. The teacher's logarithms are those of
a list that names all entries that the query sees. How many queries are taken at a time depends on the number of queries and
entries of a sequence alone; a sequence's gradients of keys are added up in fp32, in the order of its queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..reference.indexer import visible
from . import chunks
from .gradients import head_blocks
from .indexer_ops import scores_backward
from .listed_loss import log_masses, losses, scores_gradient
from .registry import lazily

_WORKSPACE = 64 * 2**20  # bytes of the numbers of entries that the loss goes through

_scores = lazily("lemmata.kernels.indexer", "scores")


class _Piece(NamedTuple):
    """Some queries of a call, or some whole sequences: what the student takes, and the logarithms that the loss is of."""

    at: tuple[slice, slice]
    student: tuple[Tensor, Tensor, Tensor, Tensor, int]
    log_mass: Tensor
    scores: Tensor


def _pieces(
    student: tuple[Tensor, Tensor, Tensor], teacher: tuple[Tensor, ...], offset: Tensor, ratio: int, scale: float
) -> Iterator[_Piece]:
    """Yield the pieces of a call."""
    q, k, weights = student
    core_q, compressed_kv, sink, lse = teacher
    core_kv, entry = compressed_kv.contiguous(), torch.arange(k.shape[1], dtype=torch.int32, device=k.device)
    numbers = k.shape[1] * (3 + head_blocks(core_q.shape[2]))
    for b, s in chunks.groups(q, 0, max(_WORKSPACE // (4 * numbers), 1)):
        part = q[b, s], k[b], weights[b, s], offset[b] + s.start, ratio
        seen = visible(part[3], part[0].shape[1], ratio).unsqueeze(-1)
        indices = torch.where(entry < seen, entry, -1)
        log_mass = log_masses(core_q[b, s], core_kv[b], indices, sink, lse[b, s], scale)
        yield _Piece((b, s), part, log_mass, _scores(*part).unsqueeze(2))


def forward(
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
    """Return the loss of each query, [B, S]."""
    out = weights.new_empty(q.shape[:2])
    for piece in _pieces((q, k, weights), (core_q, compressed_kv, sink, lse), offset, ratio, scale):
        out[piece.at] = losses(piece.log_mass, piece.scores)
    return out


def backward(
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
    """Return the gradients of q, k and weights."""
    grad_q, grad_weights = q.new_empty(q.shape), weights.new_empty(weights.shape)
    total = weights.new_zeros(k.shape)
    for piece in _pieces((q, k, weights), (core_q, compressed_kv, sink, lse), offset, ratio, scale):
        grad_scores = scores_gradient(grad_out[piece.at], piece.log_mass, piece.scores)
        grad_q[piece.at], of_keys, grad_weights[piece.at] = scores_backward(grad_scores, *piece.student)
        total[piece.at[0]] += of_keys
    return grad_q, total.to(k.dtype), grad_weights
