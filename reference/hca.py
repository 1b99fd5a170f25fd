"""Heavily compressed attention of DeepSeek-V4 (arXiv 2606.19348, section 2.3.2): a window, and all entries of the past.

Query t of sequence b stands at position offset[b] + t. It attends, with a sink (``attention``), to

    the last ``window`` tokens up to its own:  row r of window_kv is the token at position offset[b] - P + r
    compressed_kv[b, j] for all j < min(T, (offset[b] + t + 1) // ratio), those whose tokens all are in the past

Without entries, T = 0, it is sliding-window attention.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .attention import (
    COMPRESSED,
    GRADIENTS,
    GRADIENTS_IN,
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
from .contract import Contract, Static
from .indexer import visible

_STATICS = STATICS | {"ratio": Static(int, 1, 65536)}
_INPUTS = (QUERIES, WINDOW, COMPRESSED, SINK, OFFSET)
_PROBES = {"B": 3, "S": 37, "P": 127, "T": 1009}, {"B": 1, "S": 2**20, "P": 2**20, "T": 2**13}

HCA = Contract("hca", SIZES, _STATICS, _INPUTS, RESULTS, _PROBES)
HCA_BWD = Contract("hca_bwd", SIZES, _STATICS, (*GRADIENTS_IN, *_INPUTS, *RESULTS), GRADIENTS, _PROBES)
HCA_SHARD_BWD = Contract(
    "hca_shard_bwd", SIZES, _STATICS, (*GRADIENTS_IN, *_INPUTS, *TOTALS), in_fp32(GRADIENTS), _PROBES
)


def _entries(compressed_kv: Tensor, S: int, offset: Tensor, ratio: int) -> Keys:
    """Return all entries, of which a query sees those of its past."""
    entry = torch.arange(compressed_kv.shape[1], device=offset.device)
    return Keys(compressed_kv, entry < visible(offset, S, ratio).unsqueeze(-1))


def hca(
    q: Tensor,
    window_kv: Tensor,
    compressed_kv: Tensor,
    sink: Tensor,
    offset: Tensor,
    ratio: int,
    window: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return ``out`` [B, S, H, D] and ``lse`` [B, S, H]."""
    S = q.shape[1]
    return attend(q, (in_window(window_kv, S, offset, window), _entries(compressed_kv, S, offset, ratio)), sink, scale)


def hca_shard_bwd(
    grad_out: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    window_kv: Tensor,
    compressed_kv: Tensor,
    sink: Tensor,
    offset: Tensor,
    lse: Tensor,
    delta: Tensor,
    ratio: int,
    window: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, window_kv, compressed_kv and the sink, where other keys are elsewhere.

    ``lse`` and ``delta`` are those of all keys, so that the gradient of the sink is the whole one. Those of the keys that are
    here are in the dtype of the sink.
    """
    S = q.shape[1]
    parts = in_window(window_kv, S, offset, window), _entries(compressed_kv, S, offset, ratio)
    up = Upstream(grad_out, grad_lse, lse, delta)
    grad_q, (of_window, of_entries), grad_sink = attend_bwd(up, q, parts, sink, scale)
    return grad_q, in_window_bwd(of_window, window_kv), of_entries, grad_sink


def hca_bwd(
    grad_out: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    window_kv: Tensor,
    compressed_kv: Tensor,
    sink: Tensor,
    offset: Tensor,
    out: Tensor,
    lse: Tensor,
    ratio: int,
    window: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, window_kv, compressed_kv and the sink."""
    before = grad_out, grad_lse, q, window_kv, compressed_kv, sink, offset
    delta = delta_of(out, grad_out, sink)
    grad_q, of_window, of_entries, grad_sink = hca_shard_bwd(*before, lse, delta, ratio, window, scale)
    return grad_q, of_window.type_as(window_kv), of_entries.type_as(compressed_kv), grad_sink


def hca_parts(
    grad_out: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    window_kv: Tensor,
    compressed_kv: Tensor,
    sink: Tensor,
    offset: Tensor,
    lse: Tensor,
    delta: Tensor,
    ratio: int,
    window: int,
    scale: float,
    blocks: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of q, and each query's parts of those of its keys: by slots of the window, and of all entries.

    Those of the heads of each block are apart, [B, S, slots, blocks, D]. The gradient of a key is the sum of its parts;
    ``delta`` is Σ out grad_out, [B, S, H].
    """
    S = q.shape[1]
    parts = in_window(window_kv, S, offset, window), _entries(compressed_kv, S, offset, ratio)
    up = Upstream(grad_out, grad_lse, lse, delta)
    grad_q, (of_window, of_entries) = attend_parts(up, q, parts, sink, scale, blocks)
    return grad_q, of_window, of_entries
