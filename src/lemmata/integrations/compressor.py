"""The compressed entries of DeepSeek-V4's attention and of its indexer, of transformers, on ``lemmata.compress``.

A cache keeps for a compressor what its module keeps: the rows of values and logits after the last whole window and, where
windows overlap, those of the last one, which the operator takes as its past.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import lemmata

from ..reference.compressor import COMPRESS
from .calls import PLAIN, hooked
from .originals import modeling, patched
from .paths import OWN, took

_NORM = "DeepseekV4RMSNorm"


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


def compressed_keys(self: Any, hidden_states: Tensor, layer: Any, name: str) -> tuple[Tensor, str | None]:
    """Return all entries so far, [B, T, D], and None, or why ``lemmata.compress`` did not make those of this call.

    Args:
        self: a ``DeepseekV4HCACompressor``, a ``DeepseekV4CSACompressor`` or a ``DeepseekV4Indexer``.
        hidden_states: ``[B, S, hidden]``.
        layer: the cache's, or None.
        name: the compressor's in the cache.
    """
    ratio = self.compress_rate
    kv, gate, start = self.kv_proj(hidden_states), self.gate_proj(hidden_states), 0
    reason = _unfit(self, kv, gate)
    if layer is None:
        whole = kv.shape[1] // ratio * ratio
        kv, gate = kv[:, :whole], gate[:, :whole]
    else:
        kv, gate, start = layer.store_compression_weights(name, kv, gate)
    if kv.shape[1]:
        make = _by_operator if reason is None else _by_formula
        keys = make(self, kv, gate, start, (layer, name))
    else:
        keys = kv.new_zeros(kv.shape[0], 0, self.head_dim)
    return keys if layer is None else layer.update_compressor_states(name, keys), reason


def noted_keys(self: Any, hidden_states: Tensor, layer: Any) -> Tensor:
    """Return all entries so far, [B, T, D], of an attention's compressor, and note what made them."""
    keys, reason = compressed_keys(self, hidden_states, layer, "compressor")
    took(self, "compress" if reason is None else OWN, reason)
    return keys


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _unready(self: Any) -> str | None:
    """Return why the operator is not for this module, or None: sizes, and the norm and the rotation that it repeats."""
    if not hasattr(self, "lemmata_original"):
        return "a compressor that was not swapped"
    norm, angles = self.kv_norm, getattr(self.rotary_emb, f"{self.rope_layer_type}_inv_freq", None)
    if type(norm).__name__ != _NORM:
        return f"a norm of class {type(norm).__name__}"
    rotated = "apply_rotary_pos_emb", modeling().apply_rotary_pos_emb
    altered = patched((f"{_NORM}.forward", type(norm).forward), rotated) or hooked(norm)
    if altered:
        return altered
    sizes = {"ratio": self.compress_rate, "D": self.head_dim, "eps": norm.variance_epsilon}
    sizes["pairs"] = 0 if angles is None else angles.shape[-1]
    for name, value in sizes.items():
        if not COMPRESS.statics[name].admits(value):
            return f"{name} is {value}, where the operator takes {COMPRESS.statics[name].pretty}"
    return None


def _unfit(self: Any, kv: Tensor, gate: Tensor) -> str | None:
    """Return why the operator does not take these values and logits, or the module's parameters, or None."""
    if kv.dtype != torch.bfloat16:
        return f"values in {kv.dtype}, where entries are rounded to bfloat16"
    parameters = self.position_bias, self.kv_norm.weight
    if any(t.dtype == torch.float64 for t in (gate, *parameters)):
        return "parameters in float64, where the operator computes in float32"
    for tensor in (kv, gate, *parameters):
        if type(tensor) not in PLAIN:
            return f"a tensor of type {type(tensor).__name__}"
    return _unready(self)  # type: ignore[no-any-return]


def _by_operator(self: Any, kv: Tensor, gate: Tensor, start: int, held: tuple[Any, str]) -> Tensor:
    """Return the entries of whole windows, [B, n ratio, D] or twice as wide, the first of which is at position start.

    Positions are counted from the first row that is given, so that the table of angles has no rows for those before.
    """
    ratio, past, (layer, name) = self.compress_rate, 0, held
    bias, windows = self.position_bias.float(), kv.shape[1] // ratio
    overlap = self.position_bias.shape[-1] != self.head_dim
    values, logits = kv.float(), gate.float()
    if overlap and layer is not None:  # which keeps logits with their bias
        biased, wide = (t.unflatten(1, (-1, ratio)) for t in (logits, kv))  # type: ignore[no-untyped-call]
        biased = biased + bias
        before = layer.update_overlap_state(name, wide, biased, self.head_dim)
        logits, bias = biased.flatten(1, 2), torch.zeros_like(bias)
        if before[0] is not None:
            past = ratio
            # of a window before, the operator reads the first halves
            values = torch.cat([F.pad(before[0].float(), (0, self.head_dim)), values], 1)
            logits = torch.cat([F.pad(before[1].float(), (0, self.head_dim)), logits], 1)
    positions = torch.arange(windows, device=kv.device) * ratio + start
    angles = self.rotary_emb(values, position_ids=positions.unsqueeze(0), layer_type=self.rope_layer_type)
    of_windows = torch.stack(angles, -1)[0]  # [windows, pairs, 2]
    before_first = of_windows[: past // ratio]
    table = torch.cat([before_first, of_windows]).repeat_interleave(ratio, 0)
    settings: dict[str, Any] = {"offset": past, "past": past, "overlap": overlap, "eps": self.kv_norm.variance_epsilon}
    return lemmata.compress(values, logits, bias, self.kv_norm.weight.float(), table, **settings)


def _by_formula(self: Any, kv: Tensor, gate: Tensor, start: int, held: tuple[Any, str]) -> Tensor:
    """Return the same as the module computes it, in any dtype."""
    ratio, (layer, name) = self.compress_rate, held
    kv = kv.unflatten(1, (-1, ratio))  # type: ignore[no-untyped-call]
    gate = gate.unflatten(1, (-1, ratio)) + self.position_bias  # type: ignore[no-untyped-call]
    if self.position_bias.shape[-1] != self.head_dim:
        before = (None, None) if layer is None else layer.update_overlap_state(name, kv, gate, self.head_dim)
        kv, gate = _with_overlap(kv, before[0], 0.0), _with_overlap(gate, before[1], float("-inf"))
    keys = self.kv_norm((kv * gate.softmax(2, dtype=torch.float32).to(kv.dtype)).sum(2))
    positions = torch.arange(keys.shape[1], device=keys.device) * ratio + start
    rotary = self.rotary_emb(keys, position_ids=positions.expand(keys.shape[0], -1), layer_type=self.rope_layer_type)
    return modeling().apply_rotary_pos_emb(keys.unsqueeze(1), *rotary).squeeze(1)  # type: ignore[no-any-return]


def _with_overlap(windows: Tensor, before: Tensor | None, nothing: float) -> Tensor:
    """Return, from [B, T, ratio, 2 D], the first half of the window before each, then the second half of its own."""
    first, own = windows.chunk(2, -1)
    if before is None:
        before = torch.full_like(first[:, 0], nothing)
    first = torch.cat([before.unsqueeze(1).to(first.dtype), first[:, :-1]], 1)
    return torch.cat([first, own], 2)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _altered(self: Any) -> str | None:
    """Return whether the forward that ours replaces is patched, as a reason, or None."""
    return patched((f"{self.lemmata_original.__name__}.forward", self.lemmata_original.forward))


def compressor(
    self: Any,
    hidden_states: Tensor,
    q_residual: Tensor,
    position_ids: Tensor,
    past_key_values: Any = None,
    layer_idx: int = 0,
    *,
    cache: Any = None,
) -> tuple[Tensor, Tensor | None]:
    """Compute the forward of a compressor: all entries so far, ``[B, 1, T, D]``, and a bias of which of them a query sees.

    Args:
        self: a ``DeepseekV4HCACompressor`` or a ``DeepseekV4CSACompressor``.
        hidden_states: ``[B, S, hidden]``.
        q_residual: ``[B, S, q_lora_rank]``.
        position_ids: ``[B, S]`` or ``[1, S]``.
        past_key_values: the cache, or None.
        layer_idx: the layer's number in the cache.
        cache: the name that ``past_key_values`` has from transformers 5.24 on.
    """
    cache = past_key_values if cache is None else cache
    reason = _altered(self)
    if reason is not None:
        took(self, OWN, reason)
        own = self.lemmata_original.forward(self, hidden_states, q_residual, position_ids, cache, layer_idx)
        return own  # type: ignore[no-any-return]
    keys = noted_keys(self, hidden_states, layer_of(cache, layer_idx)).unsqueeze(1)
    B, S, T = *hidden_states.shape[:2], keys.shape[2]
    if hasattr(self, "indexer"):
        chosen = self.indexer(hidden_states, q_residual, position_ids, cache, layer_idx)
        bias = keys.new_full((B, 1, S, T + 1), float("-inf"))  # the last column is of indices that choose nothing
        return keys, bias.scatter_(-1, torch.where(chosen >= 0, chosen, T).unsqueeze(1), 0.0)[..., :T]
    if S == 1 or T == 0:
        return keys, None
    seen = torch.arange(T, device=keys.device) < ((position_ids + 1) // self.compress_rate).unsqueeze(-1)
    return keys, keys.new_zeros(B, 1, S, T).masked_fill(~seen.unsqueeze(1), float("-inf"))
