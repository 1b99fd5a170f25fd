"""The compressed entries of DeepSeek-V4's attention and of its indexer, of NeMo AutoModel, on ``lemmata.compress``.

AutoModel lays one grid of windows over a row of tokens. In a packed batch an entry does not pool a window of another document,
and a window that holds tokens of two, or padding, makes an entry of zeros where windows overlap: what may not be pooled is
hidden in the values and logits. Positions restart with each document, so that each row of the batch has angles of its own.

Under context parallelism a rank has some of the windows, and the first of them overlaps the last of the rank before. That one
alone is gathered, and is the operator's past; the untouched module gathers all rows of all ranks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import lemmata

from ..reference.compressor import COMPRESS
from .automodel_originals import modeling, patched
from .calls import PLAIN, hooked
from .paths import OWN, took

_BF16, _F32 = torch.bfloat16, torch.float32
_NORM, _ROTARY = "Float32RMSNorm", "DeepseekV4RotaryEmbedding"


class Windows(NamedTuple):
    """This rank's tokens in whole windows, and where they are.

    Attributes:
        kv: the values, ``[B, T ratio, D]`` or twice as wide.
        gate: the logits, as kv.
        base: the position of the first token.
        document: the document of each window of the ranks, ``[B, ranks T]``, from 1, or 0; None if the batch is not packed.
        number: the number of each window in its document, as document.
        group: the ranks of context parallelism, or None.
    """

    kv: Tensor
    gate: Tensor
    base: int
    document: Tensor | None
    number: Tensor | None
    group: Any

    def own(self, of_all: Tensor | None, count: int) -> Tensor | None:
        """Return, of what all ranks have of their windows, this rank's."""
        first = modeling().dsv4_cp_rank(self.group) * count
        return None if of_all is None else of_all[:, first : first + count]


def windows_of(self: Any, rows: tuple[Tensor, Tensor], where: tuple[Any, str, int, int], packing: Any) -> Windows:
    """Return what a compressor or an indexer pools, as the module's own forward makes it.

    Args:
        self: the module.
        rows: values and logits of this rank's tokens.
        where: the cache, the module's name in it, the layer's number and the position of the first token.
        packing: the documents of tokens, their positions, and the ranks of context parallelism; each may be None.
    """
    theirs, (cache, state, layer, start), (ids, positions, group) = modeling(), where, packing
    kv, gate, base = cache.accumulate_windows(*rows, layer, state, self.compress_ratio, start)
    found = {"seq_ids": ids, "position_ids": positions, "ready_len": kv.shape[1], "ratio": self.compress_ratio}
    document, number = theirs._compressed_window_metadata(**found)
    of_all = {"dim": 1, "cp_group": group}
    document, number = (theirs.dsv4_cp_all_gather_metadata(x, **of_all) for x in (document, number))
    return Windows(kv, gate, base, document, number, group)


def compressed(self: Any, x: Windows, hidden: Tensor, rotary: Any, dtype: torch.dtype) -> tuple[Tensor, str | None]:
    """Return this rank's entries, ``[B, T, D]``, and None, or why ``lemmata.compress`` did not make them.

    Args:
        self: a ``DeepseekV4Compressor`` or a ``DeepseekV4Indexer``.
        x: what is pooled.
        hidden: ``[B, S, hidden]`` in fp32, of which the module asks for its bias.
        rotary: what makes the angles.
        dtype: of the entries.
    """
    ape = self.ape_param(hidden)
    reason = _unfit(self, x, ape, dtype) or _unready(self, rotary)
    return (_by_operator if reason is None else _by_formula)(self, x, ape, rotary, dtype), reason


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _unready(self: Any, rotary: Any) -> str | None:
    """Return why the operator is not for this module, or None: sizes, and the norm and the rotation that it repeats."""
    norm = self.kv_norm
    for module, name in ((norm, _NORM), (rotary, _ROTARY)):
        if type(module).__name__ != name:
            return f"a module of class {type(module).__name__} in the place of {name}"
    rotated = f"{_ROTARY}.forward", type(rotary).forward
    altered = patched("entries", (f"{_NORM}.forward", type(norm).forward), rotated) or hooked(norm) or hooked(rotary)
    if altered:
        return altered
    sizes = {"ratio": self.compress_ratio, "D": self.head_dim, "eps": norm.eps, "pairs": self.rope_head_dim // 2}
    for name, value in sizes.items():
        if not COMPRESS.statics[name].admits(value):
            return f"{name} is {value}, where the operator takes {COMPRESS.statics[name].pretty}"
    return None


def _unfit(self: Any, x: Windows, ape: Tensor, dtype: torch.dtype) -> str | None:
    """Return why the operator does not take these values and logits, or the module's parameters, or None."""
    if dtype != _BF16:
        return f"hidden states in {dtype}, where entries are rounded to bfloat16"
    for name, tensor in (("values", x.kv), ("logits", x.gate), ("a bias", ape)):
        if tensor.dtype != _F32:
            return f"{name} in {tensor.dtype}, where the operator takes {_F32}"
    for tensor in (x.kv, x.gate, ape, self.kv_norm.weight):
        if type(tensor) not in PLAIN:
            return f"a tensor of type {type(tensor).__name__}"
    if not COMPRESS.sizes["positions"].admits(x.kv.shape[0] * (x.kv.shape[1] + self.compress_ratio)):
        return f"{x.kv.shape[0]} rows of {x.kv.shape[1]} tokens, which are too many"
    return None


def _by_operator(self: Any, x: Windows, ape: Tensor, rotary: Any, dtype: torch.dtype) -> Tensor:
    """Return the entries by ``lemmata.compress``.

    Positions are counted from the first window of all, in a table of the angles of all rows one after the other, so that a
    window's row is where the operator looks: after a row of its own for the past, where there is one that counts.
    """
    theirs, ratio, T = modeling(), self.compress_ratio, x.kv.shape[1] // self.compress_ratio
    rank, kv, gate, past = theirs.dsv4_cp_rank(x.group), x.kv, x.gate, 0
    if self.overlap and T and theirs.dsv4_cp_enabled(x.group):
        past = ratio
        kv, gate = _with_past(x, rank, ratio)
    if self.overlap and x.document is not None:
        kv, gate = _hidden(kv, gate, _documents(x, rank, T, past), ratio)
    lead = 1 if past and (rank or x.document is not None) else 0
    number = x.own(x.number, T)
    positions = theirs._rope_pool_positions(T, x.base, ratio, kv.device, 1)
    if number is not None:
        positions = (number * ratio).to(kv.device)
    angles = torch.stack(
        [t[..., : self.rope_head_dim // 2] for t in rotary(kv.new_empty(0, dtype=dtype), positions)], -1
    )
    table = angles.flatten(0, 1)
    table = torch.cat([table[:lead], table]).repeat_interleave(ratio, 0).to(_F32)
    offset: int | Tensor = lead * ratio
    if len(positions) > 1:
        offset = (torch.arange(len(positions), device=kv.device) * T * ratio + offset).int()
    how: dict[str, Any] = {"offset": offset, "past": past, "overlap": self.overlap, "eps": self.kv_norm.eps}
    return lemmata.compress(kv, gate, ape, self.kv_norm.weight.float(), table, **how)


def _with_past(x: Windows, rank: int, ratio: int) -> tuple[Tensor, Tensor]:
    """Return values and logits after those of the last window of the rank before; of the first rank, of the last."""
    ends = torch.cat([x.kv[:, -ratio:], x.gate[:, -ratio:]], -1)
    of_all = modeling().dsv4_cp_all_gather(ends, dim=1, cp_group=x.group)
    ranks = of_all.shape[1] // ratio
    before = (rank - 1) % ranks * ratio
    kv, gate = of_all[:, before : before + ratio].chunk(2, -1)
    return torch.cat([kv, x.kv], 1), torch.cat([gate, x.gate], 1)


def _documents(x: Windows, rank: int, T: int, past: int) -> Tensor:
    """Return the document of each window, that of the past before them; 0 for the past of the first rank."""
    document = F.pad(x.document, (1, 0))  # type: ignore[arg-type]
    first = rank * T + (0 if past else 1)
    return document[:, first : rank * T + T + 1].to(x.kv.device)


def _hidden(kv: Tensor, gate: Tensor, document: Tensor, ratio: int) -> tuple[Tensor, Tensor]:
    """Return values and logits without what a packed batch does not pool.

    The first halves of a window are pooled in the next, if that is of the same document; the second halves in its own, if all
    of its tokens are of one document. Other values are 0. Logits of first halves are -inf then; those of second halves are
    equal, as an entry of which nothing is pooled still is a mean, of zeros.
    """
    there = document > 0
    before = F.pad(there[:, 1:] & (document[:, 1:] == document[:, :-1]), (0, 1))
    pooled = torch.stack([before, there], -1).repeat_interleave(ratio, 1).unsqueeze(-1)
    values, logits = (t.unflatten(-1, (2, -1)) for t in (kv, gate))  # type: ignore[no-untyped-call]
    nothing = torch.tensor([[float("-inf")], [0.0]], device=kv.device, dtype=gate.dtype)
    return torch.where(pooled, values, 0.0).flatten(2), torch.where(pooled, logits, nothing).flatten(2)


def _by_formula(self: Any, x: Windows, ape: Tensor, rotary: Any, dtype: torch.dtype) -> Tensor:
    """Return the entries as the module computes them."""
    theirs, ratio = modeling(), self.compress_ratio
    count = x.kv.shape[1] // ratio
    how = {"overlap": self.overlap, "cp_group": x.group, "window_seq_ids": x.own(x.document, count)}
    pooled = theirs._pool_windows(x.kv, x.gate, ape, ratio, self.head_dim, **how)
    keys, number = self.kv_norm(pooled.to(dtype)), x.own(x.number, count)
    positions = theirs._rope_pool_positions(count, x.base, ratio, keys.device, keys.shape[0])
    if number is not None:
        positions = (number * ratio).to(keys.device)
    cos, sin = rotary(keys, positions)
    return theirs._apply_partial_rope(keys.unsqueeze(1), cos, sin, self.rope_head_dim).squeeze(1)  # type: ignore[no-any-return]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _altered(self: Any) -> str | None:
    """Return whether the forward that ours replaces is patched, as a reason, or None."""
    return patched("compressor", ("DeepseekV4Compressor.forward", self.lemmata_original.forward))


def compressor(
    self: Any,
    hidden_states: Tensor,
    q_residual: Tensor | None,
    rotary: Any,
    position_embeddings: tuple[Tensor, Tensor],
    cache: Any,
    layer_idx: int,
    start_pos: int,
    enable_hca_fsdp_graph_alignment: bool = False,
    position_ids: Tensor | None = None,
    packed_seq_ids: Tensor | None = None,
    cp_group: Any = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Compute the forward of ``DeepseekV4Compressor``.

    Returns:
        The entries of all ranks, ``[B, 1, T, D]``; those that the indexer chose for each query, int64 ``[B, S, K]``, -1 for
        none, if there is one; and in a packed batch each entry's document and number in it, ``[B, T]``.
    """
    given = hidden_states, q_residual, rotary, position_embeddings, cache, layer_idx, start_pos
    packing = packed_seq_ids, position_ids, cp_group
    altered = _altered(self)
    if altered is not None:
        took(self, OWN, altered)
        further = enable_hca_fsdp_graph_alignment, position_ids, packed_seq_ids, cp_group
        return self.lemmata_original.forward(self, *given, *further)  # type: ignore[no-any-return]
    theirs, wide = modeling(), hidden_states.float()
    rows = self.wkv(wide), self.wgate(wide)
    x = windows_of(self, rows, (cache, "compressor_state", layer_idx, start_pos), packing)
    if enable_hca_fsdp_graph_alignment:
        x = _aligned(self, x, rows, start_pos)
    keys, reason = compressed(self, x, wide, rotary, hidden_states.dtype)
    took(self, "compress" if reason is None else OWN, reason)
    keys = cache.update_pool(keys, layer_idx, "compressor_state").unsqueeze(1)
    keys = theirs.dsv4_cp_all_gather(keys, dim=2, cp_group=cp_group)
    chosen = None
    if self.indexer is not None:
        of_tokens = {"position_ids": position_ids, "packed_seq_ids": packed_seq_ids, "cp_group": cp_group}
        chosen = self.indexer(*given, **of_tokens)
        positions = theirs._query_positions(
            position_ids, batch=len(chosen), seq_len=chosen.shape[1], device=chosen.device
        )
        chosen = _seen(chosen, ((positions + 1) // self.compress_ratio).unsqueeze(-1), packed_seq_ids, x)
    return keys, chosen, x.document, x.number


def _aligned(self: Any, x: Windows, rows: tuple[Tensor, Tensor], start: int) -> Windows:
    """Return a window of what tokens there are, and zeros, if this rank has none and another that shares parameters has.

    So all of them have a gradient, and the ranks' reductions meet. What the window makes is hidden from every query.
    """
    some, ratio, tokens = x.kv.shape[1] > 0, self.compress_ratio, rows[0].shape[1]
    anywhere = self._compute_fsdp_group_has_complete_hca_window(some, x.kv.device)
    if self.indexer is not None or some or not anywhere or not 0 < tokens < ratio:
        return x
    kv, gate = (F.pad(t, (0, 0, 0, ratio - tokens)) for t in rows)
    return Windows(kv, gate, max(0, start), None, None, x.group)


def _seen(chosen: Tensor, complete: Tensor, ids: Tensor | None, x: Windows) -> Tensor:
    """Return the chosen entries, -1 for those that a query does not see: of its future, or of another document.

    Args:
        chosen: ``[B, S, K]``.
        complete: how many entries of its document are complete at each query, ``[B, S, 1]``.
        ids: the queries' documents, or None.
        x: the windows.
    """
    if ids is None or x.document is None or x.number is None:
        return torch.where(chosen >= complete, -1, chosen)
    ids = ids.to(chosen.device).view(-1, chosen.shape[1], 1)
    at = chosen.clamp(0, max(x.document.shape[1] - 1, 0))
    of_each = (t.to(chosen.device).unsqueeze(1).expand(-1, chosen.shape[1], -1) for t in (x.document, x.number))
    document, number = (t.gather(-1, at) for t in of_each)
    return torch.where((chosen >= 0) & (ids > 0) & (document == ids) & (number < complete), chosen, -1)
