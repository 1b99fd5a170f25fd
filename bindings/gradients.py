"""The backward of csa, hca and swa on a GPU: as many queries at a time as a workspace holds the parts of.

A kernel writes the gradient of q, and for each query its part of the gradient of each of its keys, in bf16. Others add these
up in fp32 in the order of the queries. So no bit of a result depends on the size of the workspace.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..operators import Kernel
from . import chunks
from .registry import lazily

WORKSPACE = 176 * 2**20  # bytes of the parts of a group of queries
_HEADS = 64  # that a part is the sum over, at most: those of a block of threads
_SORTED = 2**24  # indices that are sorted at a time, unless those of one group are more

_add_window = lazily("lemmata.kernels.gradient_sums", "add_window")
_columns_product = lazily("lemmata.kernels.gradient_sums", "columns_product")

Listing = tuple[Tensor, Tensor, Tensor]
"""Positions of a group's indices, sorted by the row that each names; where those of each row begin, and where they end."""


class Group(NamedTuple):
    """Queries whose parts are computed together, some of one sequence, or several whole sequences; their first positions."""

    batch: slice
    queries: slice
    offset: Tensor
    listing: Listing | None = None

    @property
    def sequences(self) -> int:
        """How many sequences."""
        return int(self.batch.stop - self.batch.start)

    def of(self, tensor: Tensor) -> Tensor:
        """Return the group's part of a tensor [B, S, ...]; it is contiguous if the tensor is."""
        return tensor[self.batch, self.queries]


Parts = Callable[[dict[str, Tensor], tuple[Tensor, Tensor], Tensor], tuple[Tensor, Tensor]]
"""From a group's tensors by name, its lse and Δ, and its part of grad_q: the parts by slots of the window, and of entries."""

Add = Callable[[Group, dict[str, Tensor], Tensor, Tensor], None]
"""Adds the parts of the entries of a group to their totals."""


def head_blocks(heads: int) -> int:
    """Return how many blocks of threads share the heads of a query; each writes parts of its own."""
    return -(-heads // _HEADS)


def sums(heads: int, columns: int, window: int) -> Iterator[Kernel]:
    """Yield the kernels that every backward launches beside its operator's, each with its config."""
    from ..kernels.gradient_sums import Config, delta, sum_window

    yield delta, Config(columns)
    yield sum_window, Config(columns, head_blocks(heads), window)


def groups(q: Tensor, offset: Tensor, slots: int) -> Iterator[Group]:
    """Yield groups of all queries, each with so many slots for keys; all of one size, but for the last of a sequence."""
    blocks = head_blocks(q.shape[2])
    of_one = slots * blocks * q.shape[3] * q.element_size()
    at_once = torch.cuda.get_device_properties(q.device).multi_processor_count if q.is_cuda else 1
    every = list(chunks.groups(q, 0, queries_of_group(of_one, blocks, at_once)))
    size = max(every[0][1].stop, 1) if every else 1
    firsts = torch.arange(0, max(q.shape[1], 1), size, device=offset.device, dtype=offset.dtype)
    positions = _aligned_rows(offset.unsqueeze(1) + firsts)
    for b, s in every:
        yield Group(b, s, positions[b, s.start // size] if s.start else offset[b].clone())


def queries_of_group(of_one: int, blocks: int, at_once: int) -> int:
    """Return how many queries a group has: those of as many whole waves as the workspace has room for, or of part of one.

    Args:
        of_one: bytes of the parts of a query.
        blocks: blocks of threads of a query, one for each block of its heads.
        at_once: blocks of threads of a wave, one for each multiprocessor.
    """
    room, wave = max(WORKSPACE // max(of_one, 1), 1), max(at_once // blocks, 1)
    return max(room // wave * wave, min(room, wave))


def _aligned_rows(numbers: Tensor) -> Tensor:
    """Return the same numbers [N, M], each at a multiple of 16 bytes as kernels read them: no copy is made for a launch."""
    return numbers.unsqueeze(-1).expand(-1, -1, 16 // numbers.element_size()).contiguous()[..., 0]


def listed(q: Tensor, offset: Tensor, indices: Tensor, T: int, window: int) -> Iterator[Group]:
    """Yield groups of all queries, with their listings of the rows that the indices name in T entries of each sequence."""
    K = indices.shape[2]
    for b, s in chunks.groups(q, 0, max(_SORTED // max(K, 1), 1)):
        every = list(groups(q[b, s], offset[b] + s.start, window + K))
        for g, listing in zip(every, _listings(indices[b, s], T, every), strict=True):
            yield Group(_moved(g.batch, b.start), _moved(g.queries, s.start), g.offset, listing)


def _moved(some: slice, by: int) -> slice:
    return slice(some.start + by, some.stop + by)


def _listings(indices: Tensor, T: int, every: list[Group]) -> Iterator[Listing]:
    """Yield the listings of the groups that share out these queries; a group's sequences have rows of their own."""
    B, S, K = indices.shape
    sequences, queries = every[0].sequences, every[0].queries.stop
    rows = sequences * T + 1  # of a group, the last for what names none
    whole = torch.int32 if len(every) * rows < 2**31 else torch.int64
    b = torch.arange(B, device=indices.device, dtype=whole).view(B, 1, 1)
    s = torch.arange(S, device=indices.device, dtype=whole).view(S, 1)
    group = b // sequences * -(-S // queries) + s // queries
    row = torch.where((indices >= 0) & (indices < T), b % sequences * T + indices, rows - 1)
    keys, order = (group * rows + row).flatten().sort(stable=True)
    firsts = torch.arange(len(every) * rows, device=indices.device, dtype=whole)
    starts = torch.searchsorted(keys, firsts, out_int32=True).view(len(every), rows)
    starts = starts - starts[:, :1]
    order = order.int() % max(sequences * S * K, 1) % max(sequences * queries * K, 1)  # counted from the group's first
    begins = itertools.accumulate((g.of(indices).numel() for g in every), initial=0)
    for g, begin, start in zip(every, begins, starts, strict=False):
        yield order[begin : begin + g.of(indices).numel()], start[:-1], start[1:]


def gradients(x: dict[str, Tensor], every: Iterator[Group], window: int, parts: Parts, add: Add) -> tuple[Tensor, ...]:
    """Return the gradients of q, of both keys in fp32, and of the sink.

    Args:
        x: the arguments of the backward by name, with ``delta`` or with ``out``, which it is found from; an operator without
            entries has some of length 0.
        every: all groups.
        window: the static parameter.
        parts: launches the operator's kernel.
        add: adds up the parts of its entries.
    """
    x = {name: tensor.contiguous() for name, tensor in x.items()}
    q, lse, sink = x["q"], x["lse"], x["sink"]
    past = x["window_kv"].shape[1] - q.shape[1]
    delta = x.pop("delta") if "delta" in x else _columns_product(x.pop("out"), x["grad_out"])
    grad_q = torch.empty_like(q)
    totals = [sink.new_zeros(x[name].shape) for name in ("window_kv", "compressed_kv")]
    for g in every:
        first = max(past + g.queries.start - window + 1, 0) if g.sequences == 1 else 0
        rows = slice(first, past + g.queries.stop)
        here = {name: _part(name, tensor, g, rows) for name, tensor in x.items()}
        of_window, of_entries = parts(here, (here["lse"], g.of(delta)), g.of(grad_q))
        _add_window(of_window, totals[0][g.batch, rows])
        if of_entries.numel() and totals[1].numel():  # a launch needs a part and a row
            add(g, here, of_entries, totals[1][g.batch])
    weight = torch.where(lse != torch.inf, (sink - lse).sigmoid(), 0.0)
    return grad_q, *totals, -(delta * weight).sum((0, 1))


def _part(name: str, tensor: Tensor, g: Group, rows: slice) -> Tensor:
    """Return the group's part of a tensor of the call, by its name; ``rows`` are those of the window's keys."""
    if name == "sink":
        return tensor
    if name == "offset":
        return g.offset
    if name == "compressed_kv":
        return tensor[g.batch]
    return tensor[g.batch, rows] if name == "window_kv" else g.of(tensor)
