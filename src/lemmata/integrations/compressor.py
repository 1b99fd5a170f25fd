"""The compressed entries of DeepSeek-V4's attention and of its indexer, by the modules' own parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .originals import modeling


def layer_of(cache: Any, index: int) -> Any:
    """Return a layer of the cache, or None if there is no cache."""
    return None if cache is None else cache.layers[index]


def entries_after(self: Any, layer: Any, name: str, tokens: int) -> int:
    """Return how many entries a compressor will hold after so many more tokens; the cache stays as it is.

    Args:
        self: the compressor.
        layer: the cache's layer, or None.
        name: the compressor's in the cache.
        tokens: how many come.
    """
    if layer is None:
        return tokens // self.compress_rate  # type: ignore[no-any-return]
    buffer = layer.buffer_kv[name]
    waiting = 0 if buffer is None else buffer.shape[1]
    return layer.entry_count[name] + (waiting + tokens) // self.compress_rate  # type: ignore[no-any-return]


def compressed_keys(self: Any, hidden_states: Tensor, cache: Any, name: str) -> Tensor:
    """Return all entries so far, [B, T, D], of a compressor whose windows overlap.

    Args:
        self: a ``DeepseekV4CSACompressor`` or a ``DeepseekV4Indexer``.
        hidden_states: ``[B, S, hidden]``.
        cache: the layer's, or None.
        name: the compressor's in the cache.
    """
    ratio, width = self.compress_rate, self.head_dim
    kv, gate, start = self.kv_proj(hidden_states), self.gate_proj(hidden_states), 0
    if cache is None:
        whole = kv.shape[1] // ratio * ratio
        kv, gate = kv[:, :whole], gate[:, :whole]
    else:
        kv, gate, start = cache.store_compression_weights(name, kv, gate)
    if kv.shape[1]:
        kv = kv.unflatten(1, (-1, ratio))
        gate = gate.unflatten(1, (-1, ratio)) + self.position_bias
        before = (None, None) if cache is None else cache.update_overlap_state(name, kv, gate, width)
        kv, gate = _with_overlap(kv, before[0], 0.0), _with_overlap(gate, before[1], float("-inf"))
        keys = self.kv_norm((kv * gate.softmax(2, dtype=torch.float32).to(kv.dtype)).sum(2))
        positions = torch.arange(keys.shape[1], device=keys.device) * ratio + start
        rotary = self.rotary_emb(
            keys, position_ids=positions.expand(keys.shape[0], -1), layer_type=self.rope_layer_type
        )
        keys = modeling().apply_rotary_pos_emb(keys.unsqueeze(1), *rotary).squeeze(1)
    else:
        keys = kv.new_zeros(kv.shape[0], 0, width)
    return keys if cache is None else cache.update_compressor_states(name, keys)  # type: ignore[no-any-return]


def _with_overlap(windows: Tensor, before: Tensor | None, nothing: float) -> Tensor:
    """Return, from [B, T, ratio, 2 D], the first half of the window before each, then the second half of its own."""
    first, own = windows.chunk(2, -1)
    if before is None:
        before = torch.full_like(first[:, 0], nothing)
    first = torch.cat([before.unsqueeze(1).to(first.dtype), first[:, :-1]], 1)
    return torch.cat([first, own], 2)
