"""Sliding-window attention, that of DeepSeek-V4's first layers (arXiv 2606.19348): each query over a window alone.

Query t of sequence b stands at position offset[b] + t. It attends, with a sink (``attention``), to

    the last ``window`` tokens up to its own:  row r of window_kv is the token at position offset[b] - P + r
"""

from __future__ import annotations

from torch import Tensor

from .attention import (
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
    Upstream,
    attend,
    attend_bwd,
    delta_of,
    in_fp32,
    in_window,
    in_window_bwd,
)
from .contract import Contract

_SIZES = {name: SIZES[name] for name in "BSP"}
_INPUTS = (QUERIES, WINDOW, SINK, OFFSET)
_GRADIENTS = tuple(spec for spec in GRADIENTS if spec.name != "grad_compressed_kv")
_PROBES = {"B": 3, "S": 37, "P": 127}, {"B": 1, "S": 2**20, "P": 2**20}

SWA = Contract("swa", _SIZES, STATICS, _INPUTS, RESULTS, _PROBES)
SWA_BWD = Contract("swa_bwd", _SIZES, STATICS, (*GRADIENTS_IN, *_INPUTS, *RESULTS), _GRADIENTS, _PROBES)
SWA_SHARD_BWD = Contract(
    "swa_shard_bwd", _SIZES, STATICS, (*GRADIENTS_IN, *_INPUTS, *TOTALS), in_fp32(_GRADIENTS), _PROBES
)


def swa(q: Tensor, window_kv: Tensor, sink: Tensor, offset: Tensor, window: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return ``out`` [B, S, H, D] and ``lse`` [B, S, H]."""
    return attend(q, (in_window(window_kv, q.shape[1], offset, window),), sink, scale)


def swa_shard_bwd(
    grad_out: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    window_kv: Tensor,
    sink: Tensor,
    offset: Tensor,
    lse: Tensor,
    delta: Tensor,
    window: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, window_kv and the sink, where other keys are elsewhere.

    ``lse`` and ``delta`` are those of all keys, so that the gradient of the sink is the whole one. Those of the keys that are
    here are in the dtype of the sink.
    """
    parts = (in_window(window_kv, q.shape[1], offset, window),)
    up = Upstream(grad_out, grad_lse, lse, delta)
    grad_q, (of_window,), grad_sink = attend_bwd(up, q, parts, sink, scale)
    return grad_q, in_window_bwd(of_window, window_kv), grad_sink


def swa_bwd(
    grad_out: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    window_kv: Tensor,
    sink: Tensor,
    offset: Tensor,
    out: Tensor,
    lse: Tensor,
    window: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, window_kv and the sink."""
    before = grad_out, grad_lse, q, window_kv, sink, offset
    delta = delta_of(out, grad_out, sink)
    grad_q, of_window, grad_sink = swa_shard_bwd(*before, lse, delta, window, scale)
    return grad_q, of_window.type_as(window_kv), grad_sink
