"""DeepSeek-V4's indexer of transformers on ``lemmata.indexer_topk``, or on ``lemmata.topk`` of its scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import lemmata

from ..reference.indexer import SELECT
from .calls import hooked
from .compressor import compressed_keys, entries_after, layer_of
from .originals import modeling, patched
from .paths import OWN, took

_HELD = 2**26  # scores that are held at a time
_CLASS = "DeepseekV4IndexerScorer"


class Call(NamedTuple):
    """What scores are computed of besides queries and entries, and the part of a path that names what made the entries."""

    hidden_states: Tensor
    positions: Tensor
    entries: str


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _altered(self: Any) -> str | None:
    """Return which of the functions that the operators stand for is patched, or None."""
    return patched(
        ("DeepseekV4Indexer.forward", self.lemmata_original.forward),
        (f"{_CLASS}.forward", type(self.scorer).forward),
        ("apply_rotary_pos_emb", modeling().apply_rotary_pos_emb),
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _plain(scorer: Any) -> bool:
    """Return whether the scorer is its class's alone: tensor parallelism completes the scores in a hook."""
    return type(scorer).__name__ == _CLASS and hooked(scorer) is None


def indexer(
    self: Any,
    hidden_states: Tensor,
    q_residual: Tensor,
    position_ids: Tensor,
    past_key_values: Any = None,
    layer_idx: int = 0,
    *,
    cache: Any = None,
    offset: Tensor | None = None,
) -> Tensor:
    """Compute the forward of ``DeepseekV4Indexer``.

    Args:
        self: the module.
        hidden_states: ``[B, S, hidden]``.
        q_residual: ``[B, S, q_lora_rank]``.
        position_ids: ``[B, S]`` or ``[1, S]``.
        past_key_values: the cache, or None.
        layer_idx: the layer's number in the cache.
        cache: the name that ``past_key_values`` has from transformers 5.24 on.
        offset: int32 ``[B]``, from a caller that knows that positions count up by one from there, and none is below 0.
    """
    cache = past_key_values if cache is None else cache
    layer, batch = layer_of(cache, layer_idx), hidden_states.shape[0]
    taken, limits = self.index_topk, SELECT.statics["topk"]
    if not limits.admits(taken):
        taken = min(taken, max(entries_after(self, layer, "indexer", hidden_states.shape[1]), 1))
    reason = _altered(self)
    if reason is None and not limits.admits(taken):
        reason = f"index_topk is {self.index_topk}, where the operator takes {limits.pretty}"
    if reason is not None:
        took(self, OWN, reason)
        own = self.lemmata_original.forward(self, hidden_states, q_residual, position_ids, cache, layer_idx)
        return own  # type: ignore[no-any-return]
    k, own_keys = compressed_keys(self, hidden_states, layer, "indexer")
    call = Call(hidden_states, position_ids.expand(batch, -1), "compress, " if own_keys is None else "")
    rotary = self.rotary_emb(hidden_states, position_ids=position_ids, layer_type=self.rope_layer_type)
    q = self.q_b_proj(q_residual).unflatten(-1, (-1, self.head_dim))
    q = modeling().apply_rotary_pos_emb(q.transpose(1, 2), *rotary).transpose(1, 2)
    if position_ids.shape[1] == 1:
        offset = position_ids[:, 0].int().expand(batch)
    indices = _selected(self, q, k, call, offset, taken)
    return indices[..., : k.shape[1]].long()


def _selected(self: Any, q: Tensor, k: Tensor, call: Call, offset: Tensor | None, topk: int) -> Tensor:
    """Return the chosen entries, ``[B, S, topk]``, by the operator that computes them without a loss of precision."""
    scorer, (hidden_states, positions, entries) = self.scorer, call
    fits = all(SELECT.statics[name].admits(size) for name, size in zip("HD", q.shape[2:], strict=True))
    if not (q.dtype == k.dtype == torch.bfloat16 and fits and _plain(scorer)):
        took(self, f"{entries}topk")
        scores = scorer(q, k, hidden_states).detach()  # indices carry no gradient
        return _largest(lambda rows: scores[:, rows], self.compress_rate, k, positions, topk)
    weights = scorer.weights_proj(hidden_states).float() * (scorer.softmax_scale * scorer.weights_scaling)
    if offset is not None:
        took(self, f"{entries}indexer_topk")
        return lemmata.indexer_topk(q, k, weights, topk=topk, ratio=self.compress_rate, offset=offset)
    took(self, f"{entries}indexer_scores, topk")
    ratio = self.compress_rate
    every = torch.full_like(positions[:, 0], k.shape[1] * ratio, dtype=torch.int32)  # from where all entries are seen

    def scored(rows: slice) -> Tensor:
        return lemmata.indexer_scores(q[:, rows], k, weights[:, rows], ratio=ratio, offset=every)

    with torch.no_grad():
        return _largest(scored, ratio, k, positions, topk)


def _largest(scores: Callable[[slice], Tensor], ratio: int, k: Tensor, positions: Tensor, topk: int) -> Tensor:
    """Select among the entries that each position sees, for as many queries at a time as `_HELD` scores are of."""
    batch, queries = positions.shape
    visible = ((positions + 1) // ratio).int()
    step = queries if torch.compiler.is_compiling() else max(_HELD // max(batch * k.shape[1], 1), 1)
    parts = []
    for start in range(0, queries, step):
        rows = slice(start, start + step)
        lengths = visible[:, rows].flatten()
        parts.append(lemmata.topk(scores(rows).flatten(0, 1), k=topk, lengths=lengths).view(batch, -1, topk))
    return torch.cat(parts, 1)
