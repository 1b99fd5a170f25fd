"""Layer 1, asynchrony: what runs on beside the threads has ended before anything that it would disturb.

An asynchronous copy (cp.async) writes shared memory, and a product (wgmma) reads it and uses registers, for some time
after they are issued. Of any two accesses to the same bytes, one of them a write, must lie between them on every run:

* a copy, then an access: the group of the copy is closed and awaited by the thread that issued it, then a barrier;
  none is needed where the same thread loads or stores. Before a product reads, a proxy fence as well, after the wait.
* a store, then a product that reads: a proxy fence and a barrier.
* a product that reads, then a copy or a store: the batch of the product is closed and finished, then a barrier.
* a load or a store, then a copy: a barrier, unless they are by the same thread.
* a product, then another use of the registers of its result: the batch is closed and finished.
* another use of registers, then a product on them: the fence of registers, `warpgroup_arrive`.

Where that is not so on every run, the bytes must differ. A proxy fence orders what lies before it on the way from a write
to a read, so it counts on either side of the barrier: by those who wrote, as is usual, or by those who read. Where only
the latter is there, that is among what is named as not modelled. Copies that nothing awaits at the end of a kernel end
with its block, whose memory no one uses any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import tilelang  # noqa: F401  (only then is the tvm that it bundles importable)
from tvm import tirx

from ..access.trace import Access, Barrier, Event, Trace
from ..access.walk import walk
from ..access.wgmma import DESCRIPTOR, ORDERING, PRODUCT
from ..base.conditions import Analysis, Condition, reachable
from ..compiler import extract
from ..contract.hypotheses import Hypotheses
from .intervals import Placed, Unordered, accesses, coarse
from .pairs import apart, within_block
from .runs import Lack, Meeting, Progress, Runs
from .timeline import roles

COPY = "tl.ptx_cp_async"
MODELLED = ORDERING | {COPY}  # instructions whose order these conditions account for
READERS_FENCE = "proxy fence after the barrier"  # taken to do as well as one before it
Fence = Literal["", "before", "after"]  # the last barrier
_MOST = 8  # groups since, that are told apart


def asynchrony(
    prim_func: tirx.PrimFunc,
    hypotheses: Hypotheses,
    pass_configs: Mapping[str, object] | None = None,
    arch: str = extract.ARCH,
) -> Analysis:
    """The conditions of kind "async" of the kernel as shipped, at device level.

    Modelled: cp.async, its groups and waits; wgmma with both operands in shared memory, its batches and waits; proxy and
    register fences; barriers of the whole block. Not modelled, and listed: TMA, mbarriers, wgmma with an operand in
    registers, and what else the kernel uses.

    Raises:
        Unsupported: the kernel uses something that is not modelled, such as a wait for a varying number of groups.
    """
    guards = extract.shipped_with_guards(pass_configs)
    device = extract.device(prim_func, guards=guards, pass_configs=pass_configs, arch=arch)
    return within_blocks(device, hypotheses)


def within_blocks(device: tirx.PrimFunc, hypotheses: Hypotheses) -> Analysis:
    """The conditions, and that each operation can happen, of a function at device level; none where warps have roles."""
    trace = walk(device, hypotheses)
    if roles(trace):
        return Analysis((), frozenset(), ())
    uniform = {*hypotheses.sizes, *(v.name for v in trace.launch.values() if v.kind == "block")}
    meetings = Runs(coarse(trace.skeleton, (Barrier, Event)), _begin, _matters, uniform).meetings()
    assumed = {READERS_FENCE} if any(map(_relies_on_readers, meetings)) else set()
    lacks = [(m, m.mark.progress.lacks(m.second)) for m in meetings]
    conditions = tuple(_conditions([(m, lack) for m, lack in lacks if lack], trace, hypotheses))
    return Analysis(conditions, trace.unmodelled - MODELLED | assumed, tuple(_operations(trace, hypotheses)), MODELLED)


def _operations(trace: Trace, hypotheses: Hypotheses) -> Iterator[Condition]:
    """That each can happen, and what is assumed of two executions, in the form that the solver gets."""
    for access in (a for node in trace.skeleton for a in accesses(node)):
        if access.intrinsic in (COPY, PRODUCT):
            yield reachable(_named(access), (*hypotheses.facts, *access.context.path), access.context.site)
            itself = [Unordered(Placed(access), Placed(access), ())]
            two = apart("async", "", itself, within_block(itself[0], trace, hypotheses), hypotheses)
            yield reachable(f"{_named(access)} beside another", two.hypotheses, access.context.site)


def _relies_on_readers(meeting: Meeting) -> bool:
    """Whether a product may read only because of a fence by those who read."""
    progress = meeting.mark.progress
    late = isinstance(progress, (_Copy, _Plain)) and progress.fence == "after"
    return late and _kind(meeting.second) == "operand" and progress.lacks(meeting.second) is None


def _conditions(lacks: Iterable[tuple[Meeting, Lack]], trace: Trace, hypotheses: Hypotheses) -> Iterator[Condition]:
    """Of each two accesses between which something may be missing, that their bytes differ."""
    found: dict[object, dict[object, tuple[Meeting, Lack]]] = {}
    for meeting, lack in lacks:
        mark = meeting.mark
        pair = id(meeting.first), id(meeting.second), mark.common, lack[1]
        found.setdefault(pair, {})[mark.carried, mark.first, mark.second] = meeting, lack
    for runs in found.values():
        yield _condition(list(runs.values()), trace, hypotheses)


def _condition(lacking: Sequence[tuple[Meeting, Lack]], trace: Trace, hypotheses: Hypotheses) -> Condition:
    (meeting, (_, by_one)), *_ = lacking
    first, second, runs = meeting.first, meeting.second, [m.pair for m, _ in lacking]
    threads = [v.name for v in trace.launch.values()] if not first.region.shared else []
    primed = within_block(runs[0], trace, hypotheses, *threads)
    other = "" if first.context.site == second.context.site else f" in {second.context.site.text}"
    missing = " or ".join(dict.fromkeys(what for _, (what, _) in lacking))
    statement = f"no {_named(second)}{other} meets this {_named(first)}, {missing}"
    return apart("async", statement, runs, primed, hypotheses, by_one)


Kind = Literal["copy", "operand", "result", "load", "store", "register", "none"]


def _kind(a: Access) -> Kind:
    if a.intrinsic == PRODUCT:
        return "operand" if a.region.shared else "result"
    if a.region.scope.startswith("local"):
        return "register"
    if not a.region.shared or a.intrinsic == DESCRIPTOR:
        return "none"
    if a.intrinsic == COPY:
        return "copy"
    return "none" if a.intrinsic else "load" if a.mode == "read" else "store"


def _named(a: Access) -> str:
    whose = {"copy": "copy's ", "operand": "product's ", "result": "product's "}.get(_kind(a), "")
    return f"{whose}{a}"


_CONFLICTS: Mapping[Kind, frozenset[Kind]] = {
    "copy": frozenset({"copy", "operand", "load", "store"}),
    "operand": frozenset({"copy", "store"}),
    "store": frozenset({"copy", "operand"}),
    "load": frozenset({"copy"}),
    "result": frozenset({"register"}),
    "register": frozenset({"result"}),
    "none": frozenset(),
}


def _matters(first: Access, second: Access) -> bool:
    return first.region.allocation == second.region.allocation and _kind(second) in _CONFLICTS[_kind(first)]


def _begin(a: Access) -> Progress | None:
    """The progress of an operation as it is issued."""
    begin: Mapping[Kind, Progress] = {
        "copy": _Copy(),
        "operand": _Product(),
        "result": _Product(),
        "load": _Plain(),
        "store": _Plain(),
        "register": _Register(),
    }
    return begin.get(_kind(a))


@dataclass(frozen=True)
class _Copy:
    """An asynchronous copy: how many groups are closed from its own on (0: it is in none), and what came after."""

    groups: int = 0
    arrived: bool = False
    fence: Fence = ""
    passed: bool = False

    def step(self, node: Barrier | Event) -> _Copy:
        if self.arrived:
            return _after(self, node)
        groups, arrived = _group(node, "commit", "await", self.groups)
        return _Copy(groups, arrived)

    def lacks(self, later: Access) -> Lack | None:
        if not self.arrived:
            return ("not awaited" if self.groups else "not committed"), False
        if _kind(later) == "operand" and not self.fence:
            return "with no proxy fence after the wait", False
        return None if self.passed else ("with no barrier after the wait", _kind(later) != "operand")


@dataclass(frozen=True)
class _Product:
    """A product: how many batches are closed from its own on (0: it is in none), and what came after."""

    batches: int = 0
    finished: bool = False
    passed: bool = False

    def step(self, node: Barrier | Event) -> _Product:
        if self.finished:
            return replace(self, passed=self.passed or isinstance(node, Barrier))
        return _Product(*_group(node, "batch", "finish", self.batches))

    def lacks(self, later: Access) -> Lack | None:
        if not self.finished:
            return ("not waited for" if self.batches else "not in a batch"), False
        return None if self.passed or _kind(later) == "register" else ("with no barrier after the wait", False)


@dataclass(frozen=True)
class _Plain:
    """A load or a store of shared memory."""

    fence: Fence = ""
    passed: bool = False

    def step(self, node: Barrier | Event) -> _Plain:
        return _after(self, node)

    def lacks(self, later: Access) -> Lack | None:
        product = _kind(later) == "operand"
        if product and not self.fence:
            return "with no proxy fence between", False
        return None if self.passed else ("with no barrier between", not product)


@dataclass(frozen=True)
class _Register:
    """A use of a register."""

    fenced: bool = False

    def step(self, node: Barrier | Event) -> _Register:
        return _Register(self.fenced or (isinstance(node, Event) and node.kind == "arrive"))

    def lacks(self, later: Access) -> Lack | None:
        return None if self.fenced else ("with no warpgroup_arrive between", False)


def _group(node: Barrier | Event, closes: str, waits: str, groups: int) -> tuple[int, bool]:
    """How many groups there are from an operation's own on, and whether a wait covers it, after a barrier or an event."""
    if isinstance(node, Barrier) or node.kind not in (closes, waits):
        return groups, False
    if node.kind == closes:
        return min(groups + 1, _MOST), False
    return groups, groups > node.pending


_Ordered = TypeVar("_Ordered", _Copy, _Plain)


def _after(progress: _Ordered, node: Barrier | Event) -> _Ordered:
    if isinstance(node, Barrier):
        return replace(progress, passed=True, fence=progress.fence and "before")
    return replace(progress, fence="after") if node.kind == "fence" and not progress.fence else progress
