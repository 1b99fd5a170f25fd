"""The records of steps of the KV compressor, with overlap and without: the oracle, planted errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import lemmata
from compressor_oracle import TINY, oracle
from lemmata.reference import compressor_step
from opspec import Array, OpSpec


def alone(numbers: Any) -> Any:
    """The numbers, -1 in the place of each that came before: what is drawn with strides of 0 is not distinct."""
    if not isinstance(numbers, Tensor) or numbers.layout is not torch.strided or numbers.is_meta:
        return numbers
    flat = numbers.flatten()
    again = (flat.unsqueeze(1) == flat).tril(-1).any(1)
    return torch.where(again, -1, flat).view(numbers.shape).to(numbers.dtype)


def own(tensor: Any) -> Any:
    """A copy to be written into; what is no tensor in memory stays for the operator to refuse."""
    if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def of_each(table: Tensor, numbers: Tensor) -> Tensor:
    """The elements of a table that numbers name, 0 where one names none, as a matrix [numbers, n]."""
    count, flat = table.shape[0], numbers.flatten()
    if not table.numel():
        return table.new_zeros(flat.shape[0], 0)
    there = ((flat >= 0) & (flat < count)).unsqueeze(1)
    return torch.where(there, table.flatten(1)[flat.clamp(0, count - 1).long()], 0.0)


def kept(state: Tensor, cache: Tensor, table: Tensor, slots: Tensor) -> Tensor:
    """What the states and the cache have of each sequence, [B, n]."""
    entries, rows = of_each(cache, table).type_as(state), of_each(state, slots)
    width = table.shape[1] * entries.shape[1]
    return torch.cat([entries.reshape(table.shape[0], width), rows], 1)


def _functional(step: Callable[..., None]) -> Callable[..., Tensor]:
    """What a step makes of copies of its states and cache."""

    def op(*given: Any, **statics: Any) -> Tensor:
        *of_call, state, cache, table, slots, offset = given
        state, cache, table, slots = own(state), own(cache), alone(table), alone(slots)
        step(*of_call, state, cache, table, slots, offset, **statics)
        return kept(state, cache, table, slots)

    return op


def _op(overlap: bool) -> Callable[..., Tensor]:
    def step(*given: Any, **statics: Any) -> None:
        *tensors, slots, offset = given
        lemmata.compress_step(*tensors, slots=slots, offset=offset, overlap=overlap, **statics)

    return _functional(step)


class Steps:
    """Steps in fp64, one sequence after the other: what they leave, and how large it is before sums cancel."""

    def __init__(self, arrays: tuple[Array, ...], eps: float) -> None:
        self.kv, self.gate, self.ape, self.weight, self.rotation, *arrays_of_place = arrays
        state, cache, table, slots, offset = (np.array(a) for a in arrays_of_place)
        self.eps, self.state, self.cache, self.offset = eps, state, cache, offset.astype(int)
        self.table, self.slots = (alone(torch.tensor(a)).numpy().astype(int) for a in (table, slots))
        self.scales = np.abs(cache) + TINY
        for b in range(len(self.kv)):
            if 0 <= self.slots[b] < len(state) and self.offset[b] >= 0:
                self._finish(b)
                self._keep(b)

    def _rows(self, b: int, tokens: range) -> Iterator[tuple[Array, Array]]:
        """The rows of tokens, of the call or from the state."""
        for t in tokens:
            at = t - self.offset[b]
            if at >= 0:
                yield self.kv[b, at], self.gate[b, at]
            else:
                yield tuple(self.state[self.slots[b], t % self.state.shape[1]])

    def _finish(self, b: int) -> None:
        ratio, overlap = len(self.ape), self.kv.shape[2] > len(self.weight)
        first, end = self.offset[b] // ratio, (self.offset[b] + self.kv.shape[1]) // ratio
        before = int(overlap and first > 0)
        if first >= end:
            return
        kv, gate = zip(*self._rows(b, range((first - before) * ratio, end * ratio)), strict=True)
        start = np.array([first * ratio])
        arrays = np.stack(kv)[None], np.stack(gate)[None], self.ape, self.weight, self.rotation, start
        found = oracle(*arrays, past=before * ratio, eps=self.eps)
        for entry, value, scale in zip(range(first, end), found.out()[0], found.scale()[0], strict=True):
            page = entry // self.cache.shape[1] if self.cache.shape[1] else self.table.shape[1]
            if page < self.table.shape[1] and 0 <= self.table[b, page] < len(self.cache):
                place = self.table[b, page], entry % self.cache.shape[1]
                self.cache[place], self.scales[place] = value, scale

    def _keep(self, b: int) -> None:
        for at in range(self.kv.shape[1]):
            row = self.kv[b, at], self.gate[b, at]
            self.state[self.slots[b], (self.offset[b] + at) % self.state.shape[1]] = row

    def result(self, cache: Array, state: Array) -> Array:
        given = (torch.tensor(x) for x in (state, cache, self.table, self.slots))
        return kept(*given).numpy()  # type: ignore[no-any-return]  # torch types numpy() as Any


def _out(*arrays: Array, eps: float) -> Array:
    steps = Steps(arrays, eps)
    return steps.result(steps.cache, steps.state)


def _scale(*arrays: Array, eps: float) -> Array:
    steps = Steps(arrays, eps)
    return steps.result(steps.scales, np.abs(steps.state)) + TINY


def _reference(*tensors: Tensor, eps: float) -> Tensor:
    return _functional(compressor_step.compress_step)(*tensors, eps=eps)


NAMES = [spec.name for spec in compressor_step.STEP.inputs]


def _with(**of: Callable[[dict[str, Tensor]], Tensor]) -> Callable[..., Tensor]:
    """The reference with other tensors, by name, each a function of all."""

    def wrong(*tensors: Tensor, eps: float) -> Tensor:
        given = dict(zip(NAMES, tensors, strict=True))
        other = given | {name: function(given) for name, function in of.items()}
        state, cache = own(other["state"]), own(other["cache"])
        other |= {"table": alone(other["table"]), "slots": alone(other["slots"])}
        compressor_step.compress_step(*(other | {"state": state, "cache": cache}).values(), eps=eps)
        return kept(state, cache, alone(given["table"]), alone(given["slots"]))

    return wrong


PLANTED: dict[str, Callable[..., Tensor]] = {
    "no bias": _with(ape=lambda x: torch.zeros_like(x["ape"])),
    "turned the other way": _with(
        rotation=lambda x: x["rotation"] * torch.tensor([1.0, -1.0], device=x["rotation"].device)
    ),
    "a token later": _with(offset=lambda x: x["offset"] + 1),
    "rows of the next sequence": _with(kv=lambda x: x["kv"].roll(1, 0)),
    "the state of the next sequence": _with(slots=lambda x: x["slots"].roll(1, 0)),
    "pages of the next sequence": _with(table=lambda x: x["table"].roll(1, 0)),
    "an empty state": _with(state=lambda x: torch.zeros_like(x["state"])),
    "a place later in the state": _with(state=lambda x: x["state"].roll(1, 1)),
    "values and logits exchanged": _with(state=lambda x: x["state"].flip(2)),
}
STEP = OpSpec(
    name="compress_step",
    operator="compressor",
    op=_op(False),
    overload=torch.ops.lemmata.compress_step_fwd.default,
    contract=compressor_step.STEP,
    sizes={"B": 4, "S": 5, "positions": 40, "states": 140, "pages": 900, "page": 7, "columns": 16},
    large={"B": 128, "S": 5, "positions": 900, "states": 160, "pages": 2048, "page": 7, "columns": 16},
    batch="B",
    configurations=(
        {"ratio": 3, "D": 64, "pairs": 8, "capacity": 9, "eps": 1e-6},
        {"ratio": 2, "D": 128, "pairs": 32, "capacity": 2, "eps": 1e-6},
        {"ratio": 20, "D": 64, "pairs": 4, "capacity": 23, "eps": 1e-3},
    ),
    reference=_reference,
    oracle=_out,
    scale=_scale,
    wrong=PLANTED,
    edges={
        "B": (0, 1, 2, 5),
        "S": (0, 1, 2, 3, 4, 5, 7, 8, 9, 33),
        "positions": (0, 1, 9, 40),
        "states": (0, 1, 4, 9),
        "pages": (0, 1, 30, 90),
        "page": (0, 1, 2, 9),
        "columns": (0, 1, 16),
    },
    optional=("slots",),
    updates=("state", "cache"),
    compiled=13,  # no other dimension's, as capacities are too
)
OVERLAP = replace(
    STEP,
    name="compress_step_overlap",
    op=_op(True),
    contract=compressor_step.STEP_OVERLAP,
    configurations=(
        {"ratio": 4, "D": 64, "pairs": 8, "capacity": 12, "eps": 1e-6},
        {"ratio": 4, "D": 128, "pairs": 32, "capacity": 8, "eps": 1e-6},
        {"ratio": 10, "D": 64, "pairs": 4, "capacity": 31, "eps": 1e-6},
    ),
)
STEPS = STEP, OVERLAP
