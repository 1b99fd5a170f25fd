"""Compressed sparse attention of DeepSeek-V4 (arXiv 2606.19348, section 2.3.1): a window, and entries by their indices.

Query t of sequence b stands at position offset[b] + t. It attends, with a sink (``attention``), to

    the last ``window`` tokens up to its own:  row r of window_kv is the token at position offset[b] - P + r
    compressed_kv[b, i] for each i in indices[b,t] with 0 <= i < T; an index that comes twice counts twice

Whether an entry lies in the query's past is the caller's business; the indexer selects no other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .attention import (
    COMPRESSED,
    GRADIENTS,
    GRADIENTS_IN,
    I32,
    OFFSET,
    QUERIES,
    RESULTS,
    SINK,
    SIZES,
    STATICS,
    TOTALS,
    WINDOW,
    Keys,
    Upstream,
    attend,
    attend_bwd,
    attend_parts,
    delta_of,
    in_fp32,
    in_window,
    in_window_bwd,
)
from .contract import Contract, Size, TensorSpec

_SIZES = SIZES | {"K": Size(0, 8192)}
_INPUTS = (QUERIES, WINDOW, COMPRESSED, TensorSpec("indices", "B S K", (I32,)), SINK, OFFSET)
_PROBES = (
    {"B": 3, "S": 37, "P": 127, "T": 1009, "K": 41},
    {"B": 1, "S": 2**20, "P": 2**20, "T": 2**18, "K": 2048},
)

CSA = Contract("csa", _SIZES, STATICS, _INPUTS, RESULTS, _PROBES)
CSA_BWD = Contract("csa_bwd", _SIZES, STATICS, (*GRADIENTS_IN, *_INPUTS, *RESULTS), GRADIENTS, _PROBES)
CSA_SHARD_BWD = Contract(
    "csa_shard_bwd", _SIZES, STATICS, (*GRADIENTS_IN, *_INPUTS, *TOTALS), in_fp32(GRADIENTS), _PROBES
)


def _selected(compressed_kv: Tensor, indices: Tensor) -> Keys:
    """Return the entries that the valid indices name; a row is read at an invalid one too, but not at its address, nor seen."""
    B, T, D = compressed_kv.shape
    seen = (indices >= 0) & (indices < T)
    entries = compressed_kv if T else compressed_kv.new_zeros(B, 1, D)
    sequence = torch.arange(B, device=indices.device).view(-1, 1, 1)
    return Keys(entries[sequence, torch.where(seen, indices, 0)], seen)


def _selected_bwd(grad_rows: Tensor, compressed_kv: Tensor, indices: Tensor) -> Tensor:
    """Return the gradient of ``compressed_kv`` from that of the rows of ``_selected``, summed in the order of the queries."""
    B, T, D = compressed_kv.shape
    sequence = torch.arange(B, device=indices.device).view(-1, 1, 1)
    row = torch.where((indices >= 0) & (indices < T), sequence * T + indices, B * T).flatten()
    grad = grad_rows.new_zeros(B * T + 1, D)  # the last one takes what invalid indices have
    if grad.is_cuda:  # where index_add_ has no fixed order, and index_put_ sorts
        grad.index_put_((row,), grad_rows.reshape(-1, D), accumulate=True)
    else:
        grad.index_add_(0, row, grad_rows.reshape(-1, D))
    return grad[:-1].view(B, T, D)


def csa(
    q: Tensor,
    window_kv: Tensor,
    compressed_kv: Tensor,
    indices: Tensor,
    sink: Tensor,
    offset: Tensor,
    window: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return ``out`` [B, S, H, D] and ``lse`` [B, S, H]."""
    parts = in_window(window_kv, q.shape[1], offset, window), _selected(compressed_kv, indices)
    return attend(q, parts, sink, scale)


def csa_shard_bwd(
    grad_out: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    window_kv: Tensor,
    compressed_kv: Tensor,
    indices: Tensor,
    sink: Tensor,
    offset: Tensor,
    lse: Tensor,
    delta: Tensor,
    window: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, window_kv, compressed_kv and the sink, where other keys are elsewhere.

    ``lse`` and ``delta`` are those of all keys, so that the gradient of the sink is the whole one. Those of the keys that are
    here are in the dtype of the sink.
    """
    parts = in_window(window_kv, q.shape[1], offset, window), _selected(compressed_kv, indices)
    up = Upstream(grad_out, grad_lse, lse, delta)
    grad_q, (of_window, of_entries), grad_sink = attend_bwd(up, q, parts, sink, scale)
    return grad_q, in_window_bwd(of_window, window_kv), _selected_bwd(of_entries, compressed_kv, indices), grad_sink


def csa_bwd(
    grad_out: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    window_kv: Tensor,
    compressed_kv: Tensor,
    indices: Tensor,
    sink: Tensor,
    offset: Tensor,
    out: Tensor,
    lse: Tensor,
    window: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, window_kv, compressed_kv and the sink."""
    before = grad_out, grad_lse, q, window_kv, compressed_kv, indices, sink, offset
    delta = delta_of(out, grad_out, sink)
    grad_q, of_window, of_entries, grad_sink = csa_shard_bwd(*before, lse, delta, window, scale)
    return grad_q, of_window.type_as(window_kv), of_entries.type_as(compressed_kv), grad_sink


def csa_parts(
    grad_out: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    window_kv: Tensor,
    compressed_kv: Tensor,
    indices: Tensor,
    sink: Tensor,
    offset: Tensor,
    lse: Tensor,
    delta: Tensor,
    window: int,
    scale: float,
    blocks: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of q, and each query's parts of those of its keys: by slots of the window, and of the indices.

    Those of the heads of each block are apart, [B, S, slots, blocks, D]. The gradient of a key is the sum of its parts;
    ``delta`` is Σ out grad_out, [B, S, H].
    """
    S = q.shape[1]
    parts = in_window(window_kv, S, offset, window), _selected(compressed_kv, indices)
    up = Upstream(grad_out, grad_lse, lse, delta)
    grad_q, (of_window, of_entries) = attend_parts(up, q, parts, sink, scale, blocks)
    return grad_q, of_window, of_entries
