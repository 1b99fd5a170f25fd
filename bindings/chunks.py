"""The indexer's references in chunks of bounded memory: what runs on a CPU, and the backward on a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..reference import indexer as reference

_PIECE = 2**15  # entries of a row that the top-k kernel selects from at a time
_CHUNK = 2**24  # elements of the largest temporary, [1, queries, H, T], unless those of one query are more


def pieces(q: Tensor, first: int, rows: int) -> Iterator[tuple[slice, slice]]:
    """Slices of the batch, one sequence each, and of the queries from ``first`` on, at most that many at a time."""
    for b in range(q.shape[0]):
        for s in range(first, q.shape[1], rows):
            yield slice(b, b + 1), slice(s, min(s + rows, q.shape[1]))


def groups(q: Tensor, first: int, rows: int) -> Iterator[tuple[slice, slice]]:
    """Yield the same, but in parts of about one size, and whole sequences together: to a kernel that is all one."""
    B, S = q.shape[:2]
    if first or rows < 2 * S:
        parts = max(-(-(S - first) // rows), 1)
        yield from pieces(q, first, max(-(-(S - first) // parts), 1))
    else:
        together = rows // max(S, 1)
        yield from ((slice(b, min(b + together, B)), slice(0, S)) for b in range(0, B, together))


def _rows(q: Tensor, k: Tensor) -> int:
    return max(_CHUNK // max(q.shape[2] * k.shape[1], 1), 1)


def scores(q: Tensor, k: Tensor, weights: Tensor, offset: Tensor, ratio: int) -> Tensor:
    """Run the reference in chunks of bounded memory; as each query's products are its own, chunks change no bit."""
    out = weights.new_empty((*q.shape[:2], k.shape[1]))
    for b, s in pieces(q, 0, _rows(q, k)):
        out[b, s] = reference.indexer_scores(q[b, s], k[b], weights[b, s], offset[b] + s.start, ratio)
    return out


def scores_fp8(q: Tensor, k: Tensor, weights: Tensor, k_scale: Tensor, offset: Tensor, ratio: int) -> Tensor:
    """Run the same with fp8 inputs."""
    out = weights.new_empty((*q.shape[:2], k.shape[1]))
    for b, s in pieces(q, 0, _rows(q, k)):
        piece = q[b, s], k[b], weights[b, s], k_scale[b], offset[b] + s.start
        out[b, s] = reference.indexer_scores_fp8(*piece, ratio)
    return out


def scores_bwd(
    grad_out: Tensor, q: Tensor, k: Tensor, weights: Tensor, offset: Tensor, ratio: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the reference in chunks of bounded memory; round the gradient of the keys to their dtype once."""
    grad_q, grad_weights = q.new_empty(q.shape), weights.new_empty(weights.shape)
    grad_k = weights.new_zeros(k.shape)
    wide_k = k.type_as(weights)
    for b, s in pieces(q, 0, _rows(q, k)):
        piece = grad_out[b, s], q[b, s].type_as(weights), wide_k[b], weights[b, s], offset[b] + s.start
        grad_q[b, s], of_keys, grad_weights[b, s] = reference.indexer_scores_bwd(*piece, ratio)
        grad_k[b] += of_keys
    return grad_q, grad_k.type_as(k), grad_weights


def select(
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
    """Scores and the largest of them, in chunks that the workspace bounds too; no scores for the first ``unscored``."""
    seen = reference.visible(offset, q.shape[1], ratio).clamp(0, k.shape[1])
    if k.shape[1] <= topk:
        return reference.everything(seen, topk)
    out = q.new_empty((*q.shape[:2], topk), dtype=torch.int32)
    out[:, :unscored] = reference.everything(seen[:, :unscored], topk)
    for b, s in pieces(q, unscored, min(_rows(q, k), held(k, topk, workspace))):
        scale = None if k_scale is None else k_scale[b]
        piece = q[b, s], k[b], weights[b, s], scale, offset[b] + s.start
        out[b, s] = reference.indexer_topk(*piece, ratio, topk)
    return out


def held(k: Tensor, topk: int, workspace: int) -> int:
    """Return how many queries' scores the workspace holds, with what each piece of them selects; at least one."""
    pieces = -(-k.shape[1] // _PIECE)
    return max(workspace // (4 * (k.shape[1] + topk * (pieces + 1) + 2)), 1)
