"""DeepSeek-V4's indexer of NeMo AutoModel on ``lemmata.indexer_topk``, or on ``lemmata.topk`` of its scores.

What it chooses among are entries of its own, which ``lemmata.compress`` makes where it takes their width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import lemmata

from ..reference.indexer import SELECT
from .automodel_compressor import compressed, windows_of
from .automodel_originals import modeling, patched
from .paths import OWN, took

OFFSET = "lemmata_offset"
"""Under which name a call's cache tells the indexer the offset: it is made for one call of attention, and seen by both."""
_HELD = 2**26  # scores that are held at a time


class Call(NamedTuple):
    """A call of the module."""

    hidden_states: Tensor
    q_residual: Tensor
    rotary: Any
    position_embeddings: tuple[Tensor, Tensor]
    cache: Any
    layer_idx: int
    start_pos: int
    position_ids: Tensor | None
    packed_seq_ids: Tensor | None
    cp_group: Any


class Entries(NamedTuple):
    """The keys of all entries, ``[B, T, D]``; in a packed batch also each entry's document, from 1, and number in it."""

    keys: Tensor
    document: Tensor | None
    number: Tensor | None


def indexer(
    self: Any,
    hidden_states: Tensor,
    q_residual: Tensor,
    rotary: Any,
    position_embeddings: tuple[Tensor, Tensor],
    cache: Any,
    layer_idx: int,
    start_pos: int,
    position_ids: Tensor | None = None,
    packed_seq_ids: Tensor | None = None,
    cp_group: Any = None,
) -> Tensor:
    """Compute the forward of ``DeepseekV4Indexer``: the chosen entries of each query, int64 ``[B, S, K]``, -1 for none."""
    given = hidden_states, q_residual, rotary, position_embeddings, cache, layer_idx, start_pos
    call = Call(*given, position_ids, packed_seq_ids, cp_group)
    reason = _altered() or _unfit(self, call)
    if reason is not None:
        took(self, OWN, reason)
        own = self.lemmata_original.forward(self, *given, position_ids, packed_seq_ids, cp_group)
        return own  # type: ignore[no-any-return]
    of_all, made = _entries(self, call)
    theirs, (B, S) = modeling(), hidden_states.shape[:2]
    cos, sin = (x.unsqueeze(2) for x in position_embeddings)
    q = self.wq_b(q_residual).view(B, S, self.n_heads, self.head_dim)
    q = theirs._apply_partial_rope(q, cos, sin, self.rope_head_dim)
    weights = self.weights_proj(hidden_states).float() * self.n_heads**-0.5
    with torch.no_grad():  # indices carry no gradient
        chosen, path = _selected(self, q, of_all, weights, call)
    took(self, made + path)
    return chosen.long()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _altered() -> str | None:
    """Return which of the functions that the operators stand for is patched, or None."""
    return patched("indexer")


def _unfit(self: Any, call: Call) -> str | None:
    """Return why no operator selects for this call, or None."""
    if call.cache.indexer_state:
        return "a cache that holds tokens of an earlier call"
    entries = call.hidden_states.shape[1] * modeling().dsv4_cp_size(call.cp_group) // self.compress_ratio
    limits = SELECT.statics["topk"]
    if not limits.admits(max(min(self.index_topk, entries), 1)):
        return f"index_topk is {self.index_topk}, where the operator takes {limits.pretty}"
    return None


def _entries(self: Any, call: Call) -> tuple[Entries, str]:
    """Return the entries of all ranks, and what made them, as `paths` shows it: nothing but the module's own, or compress."""
    theirs, hidden = modeling(), call.hidden_states.float()
    where = call.cache, "indexer_state", call.layer_idx, call.start_pos
    x = windows_of(
        self, (self.wkv(hidden), self.wgate(hidden)), where, (call.packed_seq_ids, call.position_ids, call.cp_group)
    )
    keys, own = compressed(self, x, hidden, call.rotary, call.hidden_states.dtype)
    keys = call.cache.update_pool(keys, call.layer_idx, "indexer_state")
    keys = theirs.dsv4_cp_all_gather(keys, dim=1, cp_group=call.cp_group)
    return Entries(keys, x.document, x.number), "compress, " if own is None else ""


def _selected(self: Any, q: Tensor, entries: Entries, weights: Tensor, call: Call) -> tuple[Tensor, str]:
    """Return the chosen entries, and the operators that compute them without a loss of precision."""
    theirs, k, ratio, (B, S) = modeling(), entries.keys, self.compress_ratio, q.shape[:2]
    taken = min(self.index_topk, k.shape[1])
    if taken == 0:
        return torch.empty(B, S, 0, dtype=torch.int32, device=q.device), "topk"
    fits = all(SELECT.statics[name].admits(size) for name, size in zip("HD", q.shape[2:], strict=True))
    if not (q.dtype == k.dtype == torch.bfloat16 and fits):
        context = {"compress_ratio": ratio, "softmax_scale": self.softmax_scale}
        size, rank = theirs.dsv4_cp_size(call.cp_group), theirs.dsv4_cp_rank(call.cp_group)
        context |= {
            "query_start": rank * S,
            "query_total_len": size * S,
            "backend": theirs._dsv4_kernel_backend(self.backend),
        }
        scores = theirs.dsv4_indexer_scores(q, k, weights, **context)
        return _largest(self, lambda rows: scores[:, rows], entries, call, taken), "topk"
    weights = weights * self.softmax_scale
    offset = getattr(call.cache, OFFSET, None)
    if offset is not None:
        return lemmata.indexer_topk(q, k, weights, topk=taken, ratio=ratio, offset=offset), "indexer_topk"
    every = torch.full((B,), k.shape[1] * ratio, dtype=torch.int32, device=q.device)  # from where all entries are seen

    def scored(rows: slice) -> Tensor:
        return lemmata.indexer_scores(q[:, rows], k, weights[:, rows], ratio=ratio, offset=every)

    return _largest(self, scored, entries, call, taken), "indexer_scores, topk"


def _largest(self: Any, scores: Callable[[slice], Tensor], entries: Entries, call: Call, taken: int) -> Tensor:
    """Select among the entries that each query sees, for as many queries at a time as `_HELD` scores are of."""
    (B, S), (T, device) = call.hidden_states.shape[:2], (entries.keys.shape[1], entries.keys.device)
    positions = modeling()._query_positions(call.position_ids, batch=B, seq_len=S, device=device)
    every = torch.full((S,), T, dtype=torch.int32, device=device)
    parts = []
    step = max(_HELD // max(B * T, 1), 1)
    for start in range(0, S, step):
        rows = slice(start, start + step)
        ids = None if call.packed_seq_ids is None else call.packed_seq_ids.view(-1, S)[:, rows]
        seen = visible(positions[:, rows], self.compress_ratio, ids, entries).expand(B, -1, -1)
        of = torch.where(seen, scores(rows), float("-inf"))
        picked = lemmata.topk(of.flatten(0, 1), k=taken, lengths=every[rows].repeat(B)).view(B, -1, taken)
        chosen = (picked >= 0) & seen.gather(-1, picked.clamp(min=0).long())
        parts.append(torch.where(chosen, picked, -1))
    return torch.cat(parts, 1)


def visible(positions: Tensor, ratio: int, ids: Tensor | None, entries: Entries) -> Tensor:
    """Return whether each query sees each entry, ``[B, S, T]``: one of its past, and of its document.

    Args:
        positions: the queries', ``[B, S]``; within their documents in a packed batch.
        ratio: tokens of an entry.
        ids: the queries' documents, ``[B, S]``, 0 for none; or None.
        entries: the entries.
    """
    complete = ((positions + 1) // ratio).unsqueeze(-1)
    if ids is None or entries.document is None or entries.number is None:
        return torch.arange(entries.keys.shape[1], device=positions.device) < complete
    ids = ids.to(positions.device).unsqueeze(-1)
    document, number = (x.to(positions.device).unsqueeze(1) for x in (entries.document, entries.number))
    return (ids > 0) & (ids == document) & (number < complete)
