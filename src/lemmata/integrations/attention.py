"""DeepSeek-V4's attention of transformers on ``lemmata.swa``, ``lemmata.csa`` and ``lemmata.hca``.

The operators take the keys of the window and the compressed ones apart, and the indexer's choice as indices. They know
no mask: which keys a query sees follows from its position. Where a mask says something else within the window, as
padding and packing do, ``lemmata.csa`` computes every kind of layer: the keys of the window are entries too then, and
the rows that a query sees are indices. Any other call is the module's own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import lemmata

from ..reference.csa import CSA
from ..reference.hca import HCA
from .calls import PLAIN, hooked, narrows
from .compressor import entries_after, layer_of, noted_keys
from .originals import modeling, named, patched
from .paths import OWN, took
from .sight import Sight, held, may_look, of_mask, rows_seen

_BF16 = torch.bfloat16
_CALLED = "eager_attention_forward", "repeat_kv", "apply_rotary_pos_emb", "DeepseekV4HCACache.update"


class Call(NamedTuple):
    """A call of the module, with the cache under one name whatever transformers calls it."""

    hidden_states: Tensor
    position_embeddings: Any
    position_ids: Tensor
    mask: Tensor | None
    cache: Any
    kept: int = 0
    """How many rows of the window come from earlier calls."""


def attention(
    self: Any,
    hidden_states: Tensor,
    position_embeddings: Any,
    position_ids: Tensor,
    attention_mask: Tensor | None,
    past_key_values: Any = None,
    *,
    cache: Any = None,
    lemmata_sight: Sight | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Compute the forward of ``DeepseekV4Attention``; the weights that it returns are None where an operator ran."""
    cache = past_key_values if cache is None else cache
    call = Call(hidden_states, position_embeddings, position_ids, attention_mask, cache)
    reason = _altered(self) or _unfit(self, call, kwargs)
    if reason is None:
        call, sight, reason = _look(self, call, lemmata_sight)
    if reason is None:
        done, reason = _on_lemmata(self, call, sight)
        if reason is None:
            return done, None
    took(self, OWN, reason)
    return self.lemmata_original.forward(self, *call[:5], **kwargs)  # type: ignore[no-any-return]


def _on_lemmata(self: Any, call: Call, sight: Sight) -> tuple[Tensor, str | None]:
    """Return the module's output, or why its operator does not take these queries and keys."""
    cos, sin = call.position_embeddings[self.rope_layer_type]
    rotated = modeling().apply_rotary_pos_emb
    residual = self.q_a_norm(self.q_a_proj(call.hidden_states))
    q = self.q_b_norm(self.q_b_proj(residual).unflatten(-1, (-1, self.head_dim)))
    q = rotated(q, cos, sin, unsqueeze_dim=2)
    kv = rotated(self.kv_norm(self.kv_proj(call.hidden_states)).unsqueeze(1), cos, sin)
    if not (type(q) in PLAIN and type(kv) in PLAIN):
        return q, f"queries and keys of type {type(q).__name__} and {type(kv).__name__}"
    if not (narrows(q) or q.dtype == kv.dtype == _BF16):
        return q, f"queries in {q.dtype} and keys in {kv.dtype}, where the operators take bfloat16"
    if self.sinks.shape != q.shape[2:3]:
        return q, f"{self.sinks.numel()} sinks for {q.shape[2]} heads"
    if call.cache is not None:
        kv = call.cache.update(kv, kv, self.layer_idx)[0]
    run = _by_position if sight.offset is not None else _by_rows
    out = run(self, q.to(_BF16), kv.squeeze(1).to(_BF16), residual, call, sight)
    out = rotated(out, cos, -sin, unsqueeze_dim=2)
    grouped = self.o_a_proj(out.flatten(2).unflatten(-1, (self.config.o_groups, -1)))
    return self.o_b_proj(grouped.flatten(2)), None


def _by_position(self: Any, q: Tensor, window_kv: Tensor, residual: Tensor, call: Call, sight: Sight) -> Tensor:
    """Return what the layer's own operator computes: which keys a query sees follows from its position."""
    offset = sight.offset.to(q.device).expand(q.shape[0])  # type: ignore[union-attr]
    settings: dict[str, Any] = {"window": self.sliding_window, "offset": offset, "scale": self.scaling}
    sink, op = self.sinks.float(), _operator(self)
    took(self, op)
    if op == "swa":
        return lemmata.swa(q, window_kv, sink, **settings)[0]
    if op == "csa":
        known = offset if sight.lowest >= 0 else None
        entries, indices = _chosen(self, residual, call, known)
        return lemmata.csa(q, window_kv, entries.to(_BF16), indices, sink, **settings)[0]
    entries = _all_entries(self, residual, call)
    return lemmata.hca(q, window_kv, entries, sink, ratio=self.compressor.compress_rate, **settings)[0]


def _by_rows(self: Any, q: Tensor, window_kv: Tensor, residual: Tensor, call: Call, _: Sight) -> Tensor:
    """Return what ``lemmata.csa`` computes of the rows that the mask shows to each query, and of the entries it sees."""
    batch, queries = q.shape[:2]
    op, mask = _operator(self), call.mask
    took(self, f"{op} by rows")
    indices, keys = rows_seen(mask, batch, call.kept, self.sliding_window).to(q.device), window_kv  # type: ignore[arg-type]
    if op != "swa":
        if op == "csa":
            entries, chosen = _chosen(self, residual, call, None)
        else:
            entries = _all_entries(self, residual, call)
            chosen = _visible(call.position_ids, entries.shape[1], self.compressor.compress_rate)
        chosen = torch.where(chosen >= 0, chosen + window_kv.shape[1], -1).expand(batch, -1, -1)
        keys, indices = torch.cat([window_kv, entries.to(_BF16)], 1), torch.cat([indices, chosen], -1)
    # all positions are below 0, so that the operator's own window is empty
    nowhere = torch.full((batch,), -queries, dtype=torch.int32, device=q.device)
    settings: dict[str, Any] = {"window": self.sliding_window, "offset": nowhere, "scale": self.scaling}
    own = window_kv[:, -queries:].detach()
    return lemmata.csa(q, own, keys, indices.int().contiguous(), self.sinks.float(), **settings)[0]


def _chosen(self: Any, residual: Tensor, call: Call, offset: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return all entries so far, and the indices of those that the indexer chose for each query."""
    compressor, layer = self.compressor, layer_of(call.cache, self.layer_idx)
    entries = noted_keys(compressor, call.hidden_states, layer)
    told = {} if offset is None or not hasattr(compressor.indexer, "lemmata_original") else {"offset": offset}
    at = call.position_ids, call.cache, self.layer_idx
    return entries, compressor.indexer(call.hidden_states, residual, *at, **told).int()


def _all_entries(self: Any, residual: Tensor, call: Call) -> Tensor:
    """Return all entries so far, in bf16."""
    # positions are only for its mask of all entries, which it makes for none if there is one
    one = call.position_ids[:, :1]
    entries, _ = self.compressor(call.hidden_states, residual, one, call.cache, self.layer_idx)
    return entries.squeeze(1).to(_BF16)  # type: ignore[no-any-return]


def _visible(positions: Tensor, entries: int, ratio: int) -> Tensor:
    """Return the indices of the entries that each query sees, as the module has it: a single query sees them all."""
    entry = torch.arange(entries, device=positions.device)
    if positions.shape[1] == 1:
        return entry.expand(positions.shape[0], 1, -1)
    return torch.where(entry < ((positions + 1) // ratio).unsqueeze(-1), entry, -1)


def _operator(self: Any) -> str:
    if self.compressor is None:
        return "swa"
    return "csa" if hasattr(self.compressor, "indexer") else "hca"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _altered(self: Any) -> str | None:
    """Return which of the functions that the operators stand for is not transformers' own, or why it runs otherwise."""
    theirs, compressor = modeling(), self.compressor
    if theirs.ALL_ATTENTION_FUNCTIONS.get("eager", None) is not None:
        return "another function is registered as 'eager' attention"
    of = [("DeepseekV4Attention.forward", self.lemmata_original.forward)]
    of += [(name, named(name)) for name in _CALLED]
    known = theirs.COMPRESSOR_CLASSES[self.layer_type]
    if compressor is not None:
        of += [(f"{known.__name__}.forward", getattr(compressor, "lemmata_original", type(compressor)).forward)]
    altered = patched(*of)
    if altered is not None or compressor is None:
        return altered
    if not isinstance(compressor, known):
        return f"a compressor of class {type(compressor).__name__}"
    return hooked(compressor)


def _unfit(self: Any, call: Call, kwargs: dict[str, Any]) -> str | None:
    """Return why no operator is for this module, set as it is, or for this call of it."""
    config, hidden = self.config, call.hidden_states
    if config._attn_implementation != "eager":
        return f"the attention function is {config._attn_implementation!r}, where the operators stand for 'eager'"
    if self.training and self.attention_dropout:
        return "attention dropout"
    if kwargs.get("output_attentions", getattr(config, "output_attentions", False)):
        return "output_attentions"
    statics = {"H": self.num_heads, "D": self.head_dim, "window": self.sliding_window, "scale": self.scaling}
    if self.compressor is not None:
        statics["ratio"] = self.compressor.compress_rate
    for name, value in statics.items():
        if not HCA.statics[name].admits(value):
            return f"{name} is {value}, where the operators take {HCA.statics[name].pretty}"
    if not narrows(hidden) and hidden.dtype != _BF16:
        return f"hidden states in {hidden.dtype}, where the operators take bfloat16"
    return None


def _look(self: Any, call: Call, sight: Sight | None) -> tuple[Call, Sight, str | None]:
    """Return the call with its past, what its queries see, and why no operator computes that; the cache stays as it is."""
    unseen, S, layer = Sight(None, 0, 0), call.hidden_states.shape[1], None
    past, kept = 0, 0
    if call.cache is not None:
        layers = call.cache.layers[self.layer_idx : self.layer_idx + 1]
        found = held(layers[0], self.sliding_window) if layers else None
        if found is None:
            return call, unseen, "a cache layer of another class than the model's own"
        (past, kept), layer = found, layers[0]
    mask, positions = call.mask, call.position_ids
    if not isinstance(mask, Tensor) or not mask.is_floating_point() or mask.ndim != 4:
        return call, unseen, "no mask of floating point numbers and four dimensions"
    batch = call.hidden_states.shape[0]
    if mask.shape[0] not in (1, batch) or mask.shape[1:] != (1, S, kept + S):
        return call, unseen, "a mask of another shape than queries times the rows of the window"
    if positions.ndim != 2 or positions.shape[0] not in (1, batch) or positions.shape[1] != S:
        return call, unseen, "positions of another shape than sequences times queries"
    if call.cache is not None and self.sliding_window == 1:
        return call, unseen, "a cache with a window of one token"
    call = call._replace(kept=kept)
    if sight is None or sight.past != past:
        if not may_look(mask, positions):
            return call, unseen, "a mask that cannot be looked at now, of a caller other than DeepseekV4Model"
        sight = of_mask(self, mask, positions, past, kept)
        if sight is None:
            return call, unseen, "a mask of another kind than the causal window"
    if sight.offset is not None and _operator(self) == "hca" and S == 1:
        # here the module lets a query see all entries, also where padding has held its position back
        ratio = self.compressor.compress_rate
        if (sight.lowest + 1) // ratio != (past + 1) // ratio:
            sight = unseen
    return call, sight, _too_many(self, layer, sight, kept + S, S)


def _too_many(self: Any, layer: Any, sight: Sight, rows: int, S: int) -> str | None:
    """Return why ``lemmata.csa`` would not take the indices of this call, or None."""
    op, entries = _operator(self), 0
    if (op == "swa" and sight.offset is not None) or (op == "hca" and sight.offset is not None):
        return None
    if op != "swa":
        entries = entries_after(self.compressor, layer, "compressor", S)
    indices = min(self.compressor.indexer.index_topk, entries) if op == "csa" else entries
    if sight.offset is None:
        indices, entries = indices + min(self.sliding_window, rows), entries + rows
    for name, size in (("K", indices), ("T", entries)):
        if not CSA.sizes[name].admits(size):
            return f"{name} exceeds what csa takes, {CSA.sizes[name].pretty}"
    return None
