"""The runs of a program, against each program run: no copy that a load meets unawaited goes without a mark that fits it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import pytest
import z3

from lemmata.proofs.engine.access.trace import Access, Branch, Context, Event, Loop, Node, Region, Segment, Variable
from lemmata.proofs.engine.base.conditions import Site
from lemmata.proofs.engine.order import runs
from lemmata.proofs.engine.order.progress import Steps
from lemmata.proofs.engine.order.runs import Mark, Runs

N = z3.Int("n")
HERE = Context((), (), (), Site("here"))
MEMORY = Region("s", "shared", 32, (z3.IntVal(8),), "s", 0)
COPY = "tl.ptx_cp_async"
Values = Mapping[str, int]
SEEDS = range(60)


def event(does: Any, *numbers: int) -> Event:
    """Return an event of one thread."""
    return Event(does, None, tuple(map(z3.IntVal, numbers)), (), (), HERE)


def segment(copied: bool) -> Segment:
    """Return one copy to shared memory, or one load from it."""
    return Segment(
        [Access("write" if copied else "read", MEMORY, (z3.IntVal(0),), HERE, intrinsic=COPY * copied or None)]
    )


class Programs:
    """Random programs of copies, loads, groups and waits, in loops and under conditions on the number of an iteration."""

    def __init__(self, seed: int) -> None:
        self._random, self._loops = random.Random(seed), 0

    def program(self, around: Sequence[Variable] = ()) -> list[Node]:
        """Return some statements within loops."""
        return [self._node(around) for _ in range(self._random.randint(1, 3))]

    def _node(self, around: Sequence[Variable]) -> Node:
        kinds = [""] * 4 + ["branch"] * (2 * bool(around)) + ["loop"] * (2 * (len(around) < 2))
        match self._random.choice(kinds):
            case "branch":
                left = self._random.choice(around).term + self._random.randint(-1, 2)
                right = self._random.choice([N, *(v.term for v in around), *map(z3.IntVal, range(4))])
                compared = left < right if self._random.random() < 0.5 else left == right
                arms = [self._simple()], [self._simple()] * self._random.randint(0, 1)
                return Branch(compared, arms)
            case "loop":
                self._loops += 1
                extent = self._random.choice([N, z3.IntVal(2), z3.IntVal(6)])
                v = Variable(f"t{self._loops}", "loop", z3.IntVal(self._random.randint(0, 1)), extent)
                return Loop(v, self.program((*around, v)))
        return self._simple()

    def _simple(self) -> Node:
        match self._random.choice(["copy", "load", "commit", "await"]):
            case "commit":
                return event("commit")
            case "await":
                return event("await", self._random.randint(0, 2))
            case kind:
                return segment(kind == "copy")


@dataclass
class Executed:
    """A program run with numbers: each copy with the values around it, and which of them a load meets unawaited."""

    closed: int = 0
    copies: list[tuple[Segment, Values, int]] = field(default_factory=list)
    met: list[tuple[Segment, Values, Segment, Values]] = field(default_factory=list)

    def run(self, nodes: Sequence[Node], values: Values) -> None:
        """Run some nodes."""
        for node in nodes:
            match node:
                case Segment([access]) if access.intrinsic:
                    self.copies.append((node, values, self.closed))
                case Segment():
                    self.met += [(source, there, node, values) for source, there, _ in self.copies]
                case Event("commit"):
                    self.closed += 1
                case Event("await"):
                    left = self.closed - node.numbers[0].as_long()  # type: ignore[union-attr]
                    self.copies = [c for c in self.copies if c[2] >= left]
                case Branch():
                    self.run(node.arms[0 if true(node.condition, values) else 1], values)
                case Loop(v, body):
                    low, count = (
                        z3.simplify(z3.substitute(t, (N, z3.IntVal(values["n"])))).as_long() for t in (v.low, v.count)
                    )
                    for number in range(low, low + count):
                        self.run(body, {**values, v.name: number})


def true(term: z3.BoolRef, values: Values) -> bool:
    """Return whether a condition holds of some values, which it must not go beyond."""
    return _true(term, tuple(values.items()))


@lru_cache(maxsize=2**16)
def _true(term: z3.BoolRef, values: tuple[tuple[str, int], ...]) -> bool:
    numbers = [(z3.Int(name), z3.IntVal(value)) for name, value in values]
    held = z3.simplify(z3.substitute(term, (runs.FORGOTTEN, z3.BoolVal(True)), *numbers))
    assert z3.is_true(held) or z3.is_false(held), f"{term} beyond {values}"
    return z3.is_true(held)


def fits(mark: Mark, first: Values, second: Values) -> bool:
    """Return whether a mark is one of a run from a copy to a load, with the values around each."""
    if any(first[v.name] != second[v.name] for v in mark.common):
        return False
    if mark.carried is not None:
        later = second[mark.carried.variable.name] - first[mark.carried.variable.name] - mark.carried.times
        if later < 0 or (later and mark.carried.exactly):
            return False
    return all(true(f, first) for f in mark.first) and all(true(f, second) for f in mark.second)


def missing(program: list[Node]) -> Iterator[str]:
    """Yield the copies and loads that meet in some run and have no mark that fits them."""
    ways = Runs(program, Steps(program, lambda _: False), ["n"], settle=False).ways()
    for n in (0, 1, 2, 4):
        executed = Executed()
        executed.run(program, {"n": n})
        for source, first, load, second in executed.met:
            found = [mark for w in ways if w.source is source for s, mark in w.segments.values() if s is load]
            lacking = [mark for mark in found if (mark.progress.lacks("load") or ("",))[0].startswith("not ")]
            if not any(fits(mark, first, second) for mark in lacking):
                yield f"{first} to {second} of {program}"


def test_every_copy_that_is_met_unawaited_has_a_mark() -> None:
    assert not [text for seed in SEEDS for text in missing(Programs(seed).program())]


def test_a_decision_said_of_the_next_iteration_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    t = Variable("t", "loop", z3.IntVal(0), z3.IntVal(2))
    late = Branch(t.term == 2, ([event("await", 0)], []))
    program = [segment(copied=True), event("commit"), Loop(t, [late]), segment(copied=False)]
    assert not [*missing(program)]
    right = runs._over
    monkeypatch.setattr(runs, "_over", lambda facts, v, number: right(facts, v, number + 1))
    assert [*missing(program)]
