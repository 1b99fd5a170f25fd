"""What the second opinion over prime fields is asked of the compressor's steps: a call, row by row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from lemmata.kernels import compressor
from lemmata.proofs.suite import Proof
from lemmata.reference import compressor as compressor_reference

EPS = compressor.Config().eps


class _Steps:
    """A call of compressor steps, row by row: what is kept, what is pooled, and which entries go where."""

    def __init__(self, p: Proof, given: Mapping[str, Any]) -> None:
        of = {name: int(value) for name, value in p.statics.items()}
        self.x, self.ratio, self.capacity = given, of["ratio"], of["capacity"]
        self.D, self.halves = of["D"], 1 + of["overlap"]
        self.slots, self.starts = given["slots"].tolist(), given["offset"].tolist()
        self.S, self.states = given["kv"].shape[1], given["state"].shape[0]

    def active(self) -> list[int]:
        return [b for b, slot in enumerate(self.slots) if 0 <= slot < self.states and self.starts[b] >= 0]

    def rows(self) -> Any:
        """The states behind the call."""
        now = [[self.x["state"][s, c] for c in range(self.capacity)] for s in range(self.states)]
        for b in self.active():
            for q in range(max(0, self.S - self.capacity), self.S):
                row = [self.x[name][b, q].unsqueeze(0) for name in ("kv", "gate")]
                now[self.slots[b]][(self.starts[b] + q) % self.capacity] = torch.cat(row)
        return _stacked([_stacked(of_slot) for of_slot in now])

    def entries(self) -> list[tuple[int, int, int, int, int]]:
        """Sequence, number after the first, number, page and row of each entry that is written."""
        (pages, page, _), table = self.x["cache"].shape, self.x["table"].tolist()
        firsts = {b: self.starts[b] // self.ratio for b in self.active()}
        every = ((b, n) for b, first in firsts.items() for n in range(first, (self.starts[b] + self.S) // self.ratio))
        placed = ((b, n, table[b][n // page]) for b, n in every if n < len(table[b]) * page)
        return [(b, n - firsts[b], n, at, n % page) for b, n, at in placed if 0 <= at < pages]

    def pooled(self, b: int, n: int) -> Any:
        """Entry n of sequence b: Σ exp(logit) value / Σ exp(logit) over its candidates."""
        blocks = [n - 1, n] if self.halves == 2 and n else [n]
        pairs = [self._candidate(b, block, r, first=block < n) for block in blocks for r in range(self.ratio)]
        values, logits = (_stacked(list(each)) for each in zip(*pairs, strict=True))
        weights = logits.exp()
        return (weights * values).sum(0) / weights.sum(0)

    def _candidate(self, b: int, block: int, r: int, *, first: bool) -> tuple[Any, Any]:
        token = block * self.ratio + r
        columns = slice(0, self.D) if first else slice((self.halves - 1) * self.D, self.halves * self.D)
        if (row := token - self.starts[b]) >= 0:
            value, logit = (self.x[name][b, row, columns] for name in ("kv", "gate"))
        else:
            value, logit = (self.x["state"][self.slots[b], token % self.capacity, n, columns] for n in (0, 1))
        return value, logit + self.x["ape"][r, columns]

    def cache(self, pooled: Callable[[int, int, int], Any], eps: float) -> Any:
        """The cache behind the call, of entries that are pooled so."""
        now = [list(of_page) for of_page in self.x["cache"]]
        for b, i, n, page, row in self.entries():
            y = pooled(b, i, n)
            y = self.x["norm_weight"] * y * ((y * y).sum(-1) / self.D + eps).rsqrt()
            at = compressor_reference.Given(y, y, torch.zeros(self.ratio, 1), y, self.x["rotation"], None, 0)
            at = at._replace(offset=torch.tensor([n * self.ratio], dtype=torch.int32))
            now[page][row] = compressor_reference.rotate(y.unsqueeze(0).unsqueeze(0), at)[0, 0]
        return _stacked([_stacked(of_page) for of_page in now])


def _stacked(parts: list[Any]) -> Any:
    return torch.cat([part.unsqueeze(0) for part in parts])


def of_steps(p: Proof) -> dict[str, Any]:
    """A sequence that begins, two within a block, one without a state; entries with a page and without, angles and none."""
    ratio, long = int(p.statics["ratio"]), not p.statics["keeps"]
    S, starts = (ratio * 3 // 2 + 5 if long else 6), [0, 3 * ratio - 3, ratio - 1, 7]
    names = [spec.name for spec in p.contract.inputs]
    names += [spec.name for spec in p.contract.outputs if spec.name not in names]
    table = torch.randperm(12, generator=torch.Generator().manual_seed(1)).int().view(4, 3)
    table[2, 1] = -1
    integers = {"slots": [1, 0, 2, -1], "offset": starts}
    given = {name: torch.tensor(of, dtype=torch.int32) for name, of in integers.items()} | {"table": table}
    sizes = {"B": 4, "S": S, "T": -(-S // ratio), "states": 3, "pages": 12, "page": 2, "columns": 3}
    sizes |= {"positions": 2 * ratio + 1}

    def reference(*inputs: Any) -> Any:
        x = dict(zip(names, inputs, strict=True))
        of = _Steps(p, x)

        def pooled() -> Any:
            now = [list(of_sequence) for of_sequence in x["pooled"]]
            for b, i, n, *_ in of.entries():
                now[b][i] = of.pooled(b, n)
            return _stacked([_stacked(each) for each in now])

        written = {
            "state": of.rows,
            "pooled": pooled,
            "cache": lambda: of.cache(
                (lambda b, i, _: x["pooled"][b, i]) if "pooled" in x else (lambda b, _, n: of.pooled(b, n)), EPS
            ),
        }
        found = tuple(written[spec.name]() for spec in p.contract.outputs)
        return found if len(found) > 1 else found[0]

    return {
        "reference": reference,
        "sizes": {name: sizes[name] for name in p.contract.sizes},
        "given": {name: of for name, of in given.items() if name in names},
        "statics": {**p.statics, "2*D": 2 * int(p.statics["D"])},
    }
