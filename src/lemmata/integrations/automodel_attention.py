"""DeepSeek-V4's attention of NeMo AutoModel on ``lemmata.swa``, ``lemmata.csa`` and ``lemmata.hca``.

The module's mask is looked at, once for all layers that share it. Where it is the causal window and positions count up,
each kind of layer is its own operator: which keys a query sees follows from its position. Where the mask hides more, as
padding and packing do, ``lemmata.csa`` computes every kind: the tokens of the window are entries too then, and the rows
that a query sees are indices. Any other call is the module's own.

Under context parallelism a rank holds some of the queries, one after the other, and gathers the keys of all. Its queries
need no more of them than the window before the first and the entries, at the positions that they have in the whole.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import lemmata

from ..reference.csa import CSA
from ..reference.hca import HCA
from .automodel_indexer import OFFSET, Entries, visible
from .automodel_originals import modeling, patched
from .paths import OWN, took
from .sight import Sight, may_look, of_window, rows_seen

_BF16 = torch.bfloat16


class Call(NamedTuple):
    """A call of the module.

    Attributes:
        hidden_states: ``[B, S, hidden]``, this rank's.
        rotation: the cosines and sines of queries and keys.
        compressed: those of the compressor, and what makes them for its entries.
        mask: ``[B, 1, S, rows]``.
        position_ids: as given.
        start_pos: as given.
        packed_seq_ids: ``[B, S]``, the document of each token, or None.
        group: the ranks of context parallelism, or None.
        first: the row of this rank's first query.
        rows: how many tokens all ranks have.
    """

    hidden_states: Tensor
    rotation: tuple[Tensor, Tensor]
    compressed: tuple[Any, Any]
    mask: Tensor | None
    position_ids: Tensor | None
    start_pos: int
    packed_seq_ids: Tensor | None
    group: Any
    first: int
    rows: int


def attention(
    self: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    position_embeddings_compress: tuple[Tensor, Tensor] | None = None,
    rotary_compress: Any = None,
    start_pos: int = 0,
    position_ids: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Compute the forward of ``DeepseekV4Attention``; the weights that it returns are None where an operator ran."""
    theirs, S, compress = modeling(), hidden_states.shape[1], position_embeddings_compress
    group, ids = kwargs.get("_dsv4_cp_group") or getattr(self, "_cp_group", None), kwargs.get("packed_seq_ids")
    call = Call(
        hidden_states,
        compress if self.compress_ratio and compress is not None else position_embeddings,
        (compress, rotary_compress),
        attention_mask,
        position_ids,
        start_pos,
        ids.unsqueeze(0) if ids is not None and ids.ndim == 1 else ids,
        group,
        theirs.dsv4_cp_rank(group) * S,
        theirs.dsv4_cp_size(group) * S,
    )
    reason, sight = _altered(self) or _unfit(self, call, kwargs), Sight(None, 0, 0)
    if reason is None:
        sight, reason = _look(self, call)
    if reason is None:
        done, reason = _on_lemmata(self, call, sight)
        if reason is None:
            return done, None
    took(self, OWN, reason)
    given = hidden_states, position_embeddings, attention_mask, compress, rotary_compress, start_pos, position_ids
    return self.lemmata_original.forward(self, *given, **kwargs)  # type: ignore[no-any-return]


def _on_lemmata(self: Any, call: Call, sight: Sight) -> tuple[Tensor, str | None]:
    """Return the module's output, or why its operator does not take these queries and keys."""
    theirs, hidden, (B, S) = modeling(), call.hidden_states, call.hidden_states.shape[:2]
    (cos, sin), width = call.rotation, self.rope_head_dim
    of_heads = cos.unsqueeze(2), sin.unsqueeze(2)
    rotated = theirs._apply_partial_rope
    residual = self.q_norm(self.wq_a(hidden))
    q = self.wq_b(residual).view(B, S, self.num_heads, self.head_dim)
    q = rotated(theirs._rms_norm_last_dim(q, self.config.rms_norm_eps), *of_heads, width)
    kv = rotated(self.kv_norm(self.wkv(hidden)), cos, sin, width)
    if not q.dtype == kv.dtype == _BF16:
        return q, f"queries in {q.dtype} and keys in {kv.dtype}, where the operators take bfloat16"
    rows = theirs.dsv4_cp_all_gather(kv, dim=1, cp_group=call.group)
    sink = self.sinks_param(q).float()
    out = (_by_rows if sight.offset is None else _by_position)(self, q, (rows, residual, sink), call, sight)
    out = rotated(out, of_heads[0], -of_heads[1], width)
    grouped = out.reshape(B, S, self.config.o_groups, -1)
    return self.wo_b(self.wo_a(grouped).flatten(2)), None


def _by_position(self: Any, q: Tensor, others: tuple[Tensor, Tensor, Tensor], call: Call, sight: Sight) -> Tensor:
    """Return what the layer's own operator computes: which keys a query sees follows from its position."""
    (rows, residual, sink), op = others, _operator(self)
    offset = sight.offset.to(q.device).expand(q.shape[0])  # type: ignore[union-attr]
    settings: dict[str, Any] = {"window": self.sliding_window, "offset": offset, "scale": self.scaling}
    window_kv = rows[:, max(call.first - self.sliding_window + 1, 0) : call.first + q.shape[1]]
    took(self, op)
    if op == "swa":
        return lemmata.swa(q, window_kv, sink, **settings)[0]
    entries, indices = _entries(self, residual, call, offset if sight.lowest >= 0 else None)
    if indices is not None:
        return lemmata.csa(q, window_kv, entries.keys, indices.int(), sink, **settings)[0]
    return lemmata.hca(q, window_kv, entries.keys, sink, ratio=self.compress_ratio, **settings)[0]


def _by_rows(self: Any, q: Tensor, others: tuple[Tensor, Tensor, Tensor], call: Call, _: Sight) -> Tensor:
    """Return what ``lemmata.csa`` computes of the rows that the mask shows to each query, and of the entries it sees."""
    (keys, residual, sink), (B, S), op = others, q.shape[:2], _operator(self)
    took(self, f"{op} by rows")
    indices = rows_seen(call.mask, B, call.first, self.sliding_window).to(q.device)  # type: ignore[arg-type]
    if op != "swa":
        entries, chosen = _entries(self, residual, call, None)
        if chosen is None:
            seen = visible(_positions(call), self.compress_ratio, call.packed_seq_ids, entries)
            chosen = torch.where(seen, torch.arange(entries.keys.shape[1], device=q.device), -1)
        chosen = torch.where(chosen >= 0, chosen + keys.shape[1], -1).expand(B, -1, -1)
        keys, indices = torch.cat([keys, entries.keys], 1), torch.cat([indices, chosen], -1)
    # all positions are below 0, so that the operator's own window is empty
    nowhere = torch.full((B,), -S, dtype=torch.int32, device=q.device)
    settings: dict[str, Any] = {"window": self.sliding_window, "offset": nowhere, "scale": self.scaling}
    own = others[0][:, call.first : call.first + S].detach()
    return lemmata.csa(q, own, keys, indices.int().contiguous(), sink, **settings)[0]


def _entries(self: Any, residual: Tensor, call: Call, offset: Tensor | None) -> tuple[Entries, Tensor | None]:
    """Return all entries, and the indices of those that the indexer chose for each query, if the layer has one.

    Args:
        self: the module.
        residual: what the module makes its queries of.
        call: the call.
        offset: int32 ``[B]``, the position of the first query, if positions count up from there; the indexer is told.
    """
    cache = modeling().DeepseekV4TrainCache()
    if offset is not None and call.packed_seq_ids is None:
        setattr(cache, OFFSET, offset)
    embeddings, rotary = call.compressed
    keys, chosen, document, number = self.compressor(
        call.hidden_states,
        q_residual=residual,
        rotary=rotary,
        position_embeddings=embeddings,
        cache=cache,
        layer_idx=self.layer_idx,
        start_pos=call.start_pos + call.first,
        enable_hca_fsdp_graph_alignment=self.training and self.compress_ratio == 128,
        position_ids=call.position_ids,
        packed_seq_ids=call.packed_seq_ids,
        cp_group=call.group,
    )
    return Entries(keys.squeeze(1), document, number), chosen


def _operator(self: Any) -> str:
    if self.compressor is None:
        return "swa"
    return "hca" if self.compressor.indexer is None else "csa"


def _positions(call: Call) -> Tensor:
    """Return the positions of the queries, ``[B, S]`` or ``[1, S]``."""
    (B, S), device = call.hidden_states.shape[:2], call.hidden_states.device
    how = {"batch": B, "seq_len": S, "device": device, "cp_group": call.group}
    return modeling()._query_positions(call.position_ids, **how)  # type: ignore[no-any-return]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _altered(self: Any) -> str | None:
    """Return which of the functions that the operators stand for is not AutoModel's own, or None."""
    if self.compressor is None:
        return patched("attention")
    kind = getattr(self.compressor, "lemmata_original", type(self.compressor))
    return patched("attention", ("DeepseekV4Compressor.forward", kind.forward))


def _unfit(self: Any, call: Call, kwargs: dict[str, Any]) -> str | None:
    """Return why no operator is for this module, set as it is, or for this call of it."""
    hidden = call.hidden_states
    statics = {"H": self.num_heads, "D": self.head_dim, "window": self.sliding_window, "scale": self.scaling}
    if self.compressor is not None:
        statics["ratio"] = self.compress_ratio
    for name, value in statics.items():
        if not HCA.statics[name].admits(value):
            return f"{name} is {value}, where the operators take {HCA.statics[name].pretty}"
    if hidden.dtype != _BF16:
        return f"hidden states in {hidden.dtype}, where the operators take bfloat16"
    if self.training and self.attention_dropout and modeling()._dsv4_kernel_backend(self.backend) == "torch":
        return "attention dropout"
    if kwargs.get("vision_token_types") is not None:
        return "images, whose tokens see later ones"
    return None


def _look(self: Any, call: Call) -> tuple[Sight, str | None]:
    """Return what the queries of this call see, and why no operator computes that."""
    unseen, mask, positions = Sight(None, 0, 0), call.mask, _positions(call)
    B, S = call.hidden_states.shape[:2]
    if mask is None or mask.ndim != 4 or not mask.is_floating_point():
        return unseen, "no mask of floating point numbers and four dimensions"
    if mask.shape[0] not in (1, B) or mask.shape[1:] != (1, S, call.rows):
        return unseen, "a mask of another shape than queries times the rows of the window"
    if not may_look(mask, positions):
        return unseen, "a mask that cannot be looked at now"
    ratio = min((int(r) for r in self.config.compress_ratios or () if r), default=1)
    sight = of_window(mask, positions, call.first, self.sliding_window, ratio)
    if sight is None:
        return unseen, "a mask of another kind than the causal window"
    if call.packed_seq_ids is not None:
        sight = unseen  # a document may end where the mask does not show it
    return sight, _too_many(self, sight, call)


def _too_many(self: Any, sight: Sight, call: Call) -> str | None:
    """Return why ``lemmata.csa`` would not take the indices of this call, or None."""
    op, entries = _operator(self), 0
    if op != "csa" and sight.offset is not None:
        return None
    if op != "swa":
        entries = max(call.rows // self.compress_ratio, 1)
    indices = min(self.compressor.indexer.index_topk, entries) if op == "csa" else entries
    if sight.offset is None:
        indices, entries = indices + min(self.sliding_window, call.rows), entries + call.rows
    for name, size in (("K", indices), ("T", entries)):
        if not CSA.sizes[name].admits(size):
            return f"{name} exceeds what csa takes, {CSA.sizes[name].pretty}"
    return None
