"""DeepSeek-V4's attention of transformers on ``lemmata.swa``, ``lemmata.csa`` and ``lemmata.hca``.

The operators take the keys of the window and the compressed ones apart, and the indexer's choice as indices. They know
no mask: which keys a query sees follows from its position. So they compute a call whose mask and positions say just
that, and any other call is the module's own.
"""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

import lemmata

from ..reference.csa import CSA
from ..reference.hca import HCA
from .compressor import compressed_keys, hooked

_PIECE = 2**22  # elements of a mask that are looked at together


def attention(
    self: Any,
    hidden_states: Tensor,
    position_embeddings: Any,
    position_ids: Tensor,
    attention_mask: Tensor | None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The forward of ``DeepseekV4Attention``; the weights that it returns are None where an operator ran."""
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4Attention, apply_rotary_pos_emb

    inputs = hidden_states, position_embeddings, position_ids, attention_mask, past_key_values
    own = partial(DeepseekV4Attention.forward, self, *inputs, **kwargs)
    if not (_takes(self, kwargs) and _sees(self, hidden_states, position_ids, attention_mask, past_key_values)):
        return own()  # type: ignore[no-any-return]
    cos, sin = position_embeddings[self.rope_layer_type]
    residual = self.q_a_norm(self.q_a_proj(hidden_states))
    q = self.q_b_norm(self.q_b_proj(residual).unflatten(-1, (-1, self.head_dim)))
    q = apply_rotary_pos_emb(q, cos, sin, unsqueeze_dim=2)
    kv = apply_rotary_pos_emb(self.kv_norm(self.kv_proj(hidden_states)).unsqueeze(1), cos, sin)
    plain = type(q) is type(kv) is Tensor and q.dtype == kv.dtype == torch.bfloat16
    if not plain or self.sinks.shape != q.shape[2:3]:
        return own()  # type: ignore[no-any-return]
    if past_key_values is not None:
        kv = past_key_values.update(kv, kv, self.layer_idx)[0]
    out = _core(self, q, kv.squeeze(1), hidden_states, residual, position_ids, past_key_values)
    out = apply_rotary_pos_emb(out, cos, -sin, unsqueeze_dim=2)
    grouped = self.o_a_proj(out.flatten(2).unflatten(-1, (self.config.o_groups, -1)))
    return self.o_b_proj(grouped.flatten(2)), None


def _core(
    self: Any,
    q: Tensor,
    window_kv: Tensor,
    hidden_states: Tensor,
    residual: Tensor,
    position_ids: Tensor,
    past_key_values: Any,
) -> Tensor:
    offset = position_ids[:, 0].int().expand(q.shape[0])
    settings: dict[str, Any] = {"window": self.sliding_window, "offset": offset, "scale": self.scaling}
    sink, compressor, at = self.sinks.float(), self.compressor, (past_key_values, self.layer_idx)
    if compressor is None:
        return lemmata.swa(q, window_kv, sink, **settings)[0]
    if hasattr(compressor, "indexer"):
        layer = None if past_key_values is None else past_key_values.layers[self.layer_idx]
        entries = compressed_keys(compressor, hidden_states, layer, "compressor")
        indices = compressor.indexer(hidden_states, residual, position_ids, *at)
        return lemmata.csa(q, window_kv, entries, indices.int(), sink, **settings)[0]
    # positions are only for its mask of all entries, which it makes for none if there is one
    entries, _ = compressor(hidden_states, residual, position_ids[:, :1], *at)
    return lemmata.hca(q, window_kv, entries.squeeze(1), sink, ratio=compressor.compress_rate, **settings)[0]


def _takes(self: Any, kwargs: dict[str, Any]) -> bool:
    """Whether there is an operator for this module, set as it is."""
    from transformers.models.deepseek_v4 import modeling_deepseek_v4 as modeling

    compressor = self.compressor
    known = modeling.COMPRESSOR_CLASSES[self.layer_type]
    if not (compressor is None if known is None else type(compressor) is known and not hooked(compressor)):
        return False
    if self.config._attn_implementation != "eager" or (self.training and self.attention_dropout):
        return False
    if kwargs.get("output_attentions", getattr(self.config, "output_attentions", False)):
        return False
    statics = {"H": self.num_heads, "D": self.head_dim, "window": self.sliding_window, "scale": self.scaling}
    if compressor is not None:
        statics["ratio"] = compressor.compress_rate
    entries = compressor.indexer.index_topk if hasattr(compressor, "indexer") else 0
    return all(HCA.statics[name].admits(value) for name, value in statics.items()) and CSA.sizes["K"].admits(entries)


def _sees(
    self: Any, hidden_states: Tensor, position_ids: Tensor, attention_mask: Tensor | None, past_key_values: Any
) -> bool:
    """Whether this call is in bf16, and its queries see what the operator's see; does not alter the cache."""
    if hidden_states.dtype != torch.bfloat16 or torch.compiler.is_compiling():  # a traced graph cannot ask the mask
        return False
    B, S, _ = hidden_states.shape
    past, kept = 0, 0
    if past_key_values is not None:
        layers = past_key_values.layers[self.layer_idx : self.layer_idx + 1]
        if not layers or type(layers[0]) not in _caches():
            return False
        past, kept = layers[0].cumulative_length, layers[0].keys.shape[-2] if layers[0].is_initialized else 0
    if not isinstance(attention_mask, Tensor) or attention_mask.shape not in {(b, 1, S, kept + S) for b in (1, B)}:
        return False
    if not attention_mask.is_floating_point() or position_ids.shape not in {(b, S) for b in (1, B)}:
        return False
    offset = _offset(attention_mask, position_ids, kept, self.sliding_window)
    if self.layer_type == "heavily_compressed_attention" and S == 1:
        # here the module lets a query see all entries, also where padding has held its position back
        ratio = self.compressor.compress_rate
        return offset >= 0 and (offset + 1) // ratio == (past + 1) // ratio
    return offset >= 0


def _caches() -> tuple[type, ...]:
    from transformers.cache_utils import DynamicSlidingWindowLayer
    from transformers.models.deepseek_v4 import modeling_deepseek_v4 as modeling

    return DynamicSlidingWindowLayer, modeling.DeepseekV4HCACache, modeling.DeepseekV4CSACache


_OFFSETS = WeakTensorKeyDictionary()  # of masks; the layers of a model share theirs


def _offset(mask: Tensor, position_ids: Tensor, kept: int, window: int) -> int:
    """The lowest position of a first query, or -1 if the mask is not that of the operators. Waits for the device."""
    if mask.is_inference() or position_ids.is_inference():  # which may change unnoticed
        return int(_lowest(mask, position_ids, kept, window))
    state = mask._version, position_ids._version, kept, window
    if mask in _OFFSETS:
        positions, then, offset = _OFFSETS[mask]
        if positions() is position_ids and then == state:
            return offset  # type: ignore[no-any-return]
    offset = int(_lowest(mask, position_ids, kept, window))
    _OFFSETS[mask] = weakref.ref(position_ids), state, offset
    return offset


def _lowest(mask: Tensor, position_ids: Tensor, kept: int, window: int) -> Tensor:
    """What `_offset` returns. Every query must stand at a position of at least 0, one after the one before."""
    S, rows = mask.shape[2:]
    offset, row = position_ids[:, :1].unsqueeze(-1), torch.arange(rows, device=mask.device)
    agrees = (position_ids >= 0).all() & (position_ids.diff() == 1).all()
    masked, step = torch.finfo(mask.dtype).min, max(_PIECE // rows, 1)
    for start in range(0, S, step):
        part = mask[:, 0, start : start + step]
        age = torch.arange(start, start + part.shape[1], device=mask.device).unsqueeze(-1) + kept - row
        seen = (age >= 0) & (age < window) & (offset - kept + row >= 0)
        agrees = agrees & torch.where(seen, part == 0, part <= masked).all()
    return torch.where(agrees, position_ids[:, 0].min(), -1)
