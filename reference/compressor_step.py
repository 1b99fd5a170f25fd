"""Steps of the KV compressor: further tokens of sequences, of which some finish an entry (formula: compressor.py beside this).

A state keeps the last rows of a sequence, values and logits without their biases: that of token t in place t mod capacity.
The candidates of an entry are rows of the call, or of tokens before it, which the state has. So a sequence may come in any
parts. An entry is written as soon as the last token of its block is there: entry i into row i mod page of page
``table[i // page]`` of a cache.

A sequence whose slot is none of the states', or that begins before position 0, does nothing. No entry is written for which the
table has no column, or no page of the cache.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import compressor
from .compressor import BF16, F32, I32, Given, Pooled
from .contract import Contract, Elements, Size, Static, TensorSpec
from .indexer import OFFSETS

SIZES = compressor.SIZES | {
    "S": Size(0, 2**24),
    "states": Size(0, 2**20),
    "pages": Size(0, 2**30),
    "page": Size(0, OFFSETS - 1),
    "columns": Size(0, OFFSETS - 1),
}
STATICS = {name: compressor.STATICS[name] for name in ("ratio", "D", "pairs", "eps")}
STATICS |= {"capacity": Static(int, 1, 4096)}
PROBES = (
    {"B": 3, "S": 1009, "positions": 4099, "states": 5, "pages": 1013, "page": 7, "columns": 11},
    {"B": 128, "S": 4, "positions": 2**20, "states": 256, "pages": 2**15, "page": 64, "columns": 2**12},
)


def _contract(halves: int) -> Contract:
    """Return the contract on rows that are so many times as wide as an entry."""
    wide = f"{halves}*D" if halves > 1 else "D"
    inputs = (
        TensorSpec("kv", f"B S {wide}", (F32,)),
        TensorSpec("gate", f"B S {wide}", (F32,)),
        TensorSpec("ape", f"ratio {wide}", (F32,)),
        TensorSpec("norm_weight", "D", (F32,)),
        TensorSpec("rotation", "positions pairs 2", (F32,)),
        TensorSpec("state", f"states capacity 2 {wide}", (F32,)),
        TensorSpec("cache", "pages page D", (BF16,)),
        TensorSpec("table", "B columns", (I32,), Elements(distinct="pages")),
        TensorSpec("slots", "B", (I32,), Elements(distinct="states")),
        TensorSpec("offset", "B", (I32,), Elements(-OFFSETS, OFFSETS)),
    )
    room = f"{halves}*ratio <= capacity"
    return Contract("compress_step", SIZES, STATICS, inputs, (), PROBES, (room,))


STEP, STEP_OVERLAP = _contract(1), _contract(2)


class Step(NamedTuple):
    """The tensors of a step."""

    kv: Tensor
    gate: Tensor
    ape: Tensor
    norm_weight: Tensor
    rotation: Tensor
    state: Tensor
    cache: Tensor
    table: Tensor
    slots: Tensor
    offset: Tensor

    @property
    def ratio(self) -> int:
        """Return how many tokens a block has."""
        return self.ape.shape[0]

    @property
    def D(self) -> int:  # noqa: N802
        """Return how many channels an entry has."""
        return self.norm_weight.shape[0]

    @property
    def T(self) -> int:  # noqa: N802
        """Return how many entries a sequence may finish at most."""
        return (self.kv.shape[1] + self.ratio - 1) // self.ratio

    @property
    def start(self) -> Tensor:
        """Return the first token of each sequence, [B, 1]."""
        return self.offset.long().unsqueeze(-1)

    @property
    def first(self) -> Tensor:
        """Return the number of the first entry that each sequence may finish, [B, 1]."""
        return self.start // self.ratio

    @property
    def sequences(self) -> Tensor:
        """Return the numbers of the sequences, [B]."""
        return torch.arange(self.kv.shape[0], device=self.kv.device)

    @property
    def active(self) -> Tensor:
        """Return whether each sequence has a state and a position, [B, 1]."""
        return ((self.slots >= 0) & (self.slots < self.state.shape[0]) & (self.offset >= 0)).unsqueeze(-1)


class Places(NamedTuple):
    """Which rows [B, n] are written, and where each of them is: in which state or page, and in which row of that."""

    written: Tensor
    outer: Tensor
    inner: Tensor


class Candidates(NamedTuple):
    """Values and logits [B, T, n, D] of the candidates of entries, and where there is one, [B, T, n, 1]."""

    values: Tensor
    logits: Tensor
    there: Tensor


def place(token: Tensor, x: Step) -> Tensor:
    """Return where a state has the row of a token."""
    capacity = x.state.shape[1]
    return token - capacity * (token // capacity)


def candidates(x: Step, T: int) -> Candidates:
    """Return the candidates of T entries of each sequence, the first that it may finish and those after it."""
    halves = x.kv.shape[-1] // x.D
    of_block = torch.arange((1 - halves) * x.ratio, x.ratio, device=x.kv.device)  # below 0 in the block before
    entry = x.first + torch.arange(T, device=x.kv.device)
    token = (entry * x.ratio).unsqueeze(-1) + of_block
    own = (of_block >= 0).unsqueeze(-1)
    of_call = token - x.start.unsqueeze(-1)
    given = x.sequences.view(-1, 1, 1), of_call.clamp(0, x.kv.shape[1] - 1)
    kept = x.slots.long().view(-1, 1, 1).clamp(0, x.state.shape[0] - 1), place(token, x)
    new = (of_call >= 0).unsqueeze(-1)
    values, logits = (torch.where(new, t[given], x.state[(*kept, n)]) for n, t in enumerate((x.kv, x.gate)))
    logits = logits + x.ape[of_block + x.ratio * (of_block < 0).long()]
    values, logits = (torch.where(own, t[..., -x.D :], t[..., : x.D]) for t in (values, logits))
    return Candidates(values, logits, own | (entry >= 1).unsqueeze(-1).unsqueeze(-1))


def pool(x: Step, T: int) -> Pooled:
    """Pool the candidates of T entries of each sequence."""
    return compressor.weighted(*candidates(x, T))


def entries(pooled: Tensor, x: Step, eps: float, dtype: torch.dtype, simulate_fp8: bool = False) -> Tensor:
    """Return the entries of what was pooled, as those of a whole sequence are made."""
    given = Given(x.kv, x.gate, x.ape, x.norm_weight, x.rotation, x.first * x.ratio, 0)
    return compressor.entries(pooled, given, eps, dtype, simulate_fp8)


def places_of_entries(x: Step, T: int) -> Places:
    """Return where T entries of each sequence go, those that the tokens finish and that have a place in the cache."""
    (pages, page, _), columns = x.cache.shape, x.table.shape[1]
    entry = x.first + torch.arange(T, device=x.kv.device)
    done = (entry + 1) * x.ratio <= x.start + x.kv.shape[1]
    column = entry // page
    found = x.table.gather(1, column.clamp(0, columns - 1))
    written = x.active & done & (column < columns) & (found >= 0) & (found < pages)
    return Places(written, found, entry - page * column)


def places_of_rows(x: Step) -> Places:
    """Return where the tokens' rows go, the last ones, as many as a state has room for."""
    S = x.kv.shape[1]
    token = torch.arange(S, device=x.kv.device)
    kept = x.active & (token >= S - x.state.shape[1])
    return Places(kept, x.slots.unsqueeze(-1).expand(-1, S), place(x.start + token, x))


def compress_step(
    kv: Tensor,
    gate: Tensor,
    ape: Tensor,
    norm_weight: Tensor,
    rotation: Tensor,
    state: Tensor,
    cache: Tensor,
    table: Tensor,
    slots: Tensor,
    offset: Tensor,
    eps: float = 1e-6,
    simulate_fp8: bool = False,
    dtype: torch.dtype = BF16,
) -> None:
    """Write the entries that the tokens [offset, offset + S) of each sequence finish, and keep the tokens' rows.

    Entries are rounded to ``dtype``.
    """
    x = Step(kv, gate, ape, norm_weight, rotation, state, cache, table, slots, offset)
    if not (kv.numel() and state.shape[0]):
        return
    if cache.numel() and table.numel():
        pooled = pool(x, x.T).total.to(dtype)
        _write(entries(pooled, x, eps, dtype, simulate_fp8), cache, places_of_entries(x, x.T))
    for n, rows in enumerate((kv, gate)):
        _write(rows, state[:, :, n], places_of_rows(x))


def _write(rows: Tensor, into: Tensor, to: Places) -> None:
    """Write those rows that go anywhere."""
    into[to.outer[to.written], to.inner[to.written]] = rows[to.written].type_as(into)
