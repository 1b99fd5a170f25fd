"""Layer 1, races: no two threads touch the same memory unordered, one of them writing.

Shared memory is read at device level, where the compiler has placed the barriers and laid buffers out in one arena. Two
threads of one block run the kernel side by side; any two accesses with no barrier between them must be by the same
thread, both reads, or of different bytes. No order within a warp is assumed.

Global memory is read at thread level. A barrier does not order two blocks, so none is counted: an element that one
thread writes must not be touched by another thread of the grid.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import tilelang  # noqa: F401  (only then is the tvm that it bundles importable)
import z3
from tvm import tirx

from . import extract
from .bounds import sites
from .conditions import Analysis, Condition, conjunction
from .errors import Unsupported
from .hypotheses import Hypotheses
from .instances import Renaming, equal, sequent
from .intervals import Unordered, barriers, unordered
from .trace import Access, Barrier, Context, Trace
from .walk import walk


def races(
    prim_func: tirx.PrimFunc,
    hypotheses: Hypotheses,
    pass_configs: Mapping[str, object] | None = None,
    arch: str = extract.ARCH,
) -> Analysis:
    """The conditions of race freedom, kind "race", and of uniform barriers, kind "barrier", of the kernel as shipped.

    Modelled: loads, stores, warp-wide matrix loads and stores; that a product by wgmma reads its operands after its
    descriptor is made, but not how long; barriers of the whole block, in loops and uniform branches. Not modelled, and
    listed: accesses by asynchronous copies, atomics and other intrinsics, and the order they impose.
    Repeated writes to one output element are coverage.py's. A global element that two threads exchange across a barrier
    is reported as a race.

    Raises:
        Unsupported: the kernel uses something that is not modelled, such as a barrier of part of a block.
    """
    guards = extract.shipped_with_guards(pass_configs)
    lowered = extract.lower(prim_func, guards=guards, pass_configs=pass_configs, arch=arch)
    thread = walk(lowered.thread, hypotheses)
    within = within_blocks(lowered.device, hypotheses)
    conditions = (*within.conditions, *_global(thread, hypotheses))
    return Analysis(conditions, thread.unmodelled | within.unmodelled, within.sites)


def within_blocks(device: tirx.PrimFunc, hypotheses: Hypotheses) -> Analysis:
    """The conditions on the threads of one block: of shared memory, and of the barriers."""
    trace = walk(device, hypotheses)
    conditions = (*(_uniform(b, hypotheses) for b in barriers(trace.skeleton)), *_shared(trace, hypotheses))
    return Analysis(conditions, trace.unmodelled, sites(trace, hypotheses))


def _common(hypotheses: Hypotheses, *names: str) -> Renaming:
    return Renaming(frozenset(hypotheses.sizes) | frozenset(names))


def _blocks(trace: Trace) -> list[str]:
    return [v.name for v in trace.launch.values() if v.kind == "block"]


def _uniform(barrier: Barrier, hypotheses: Hypotheses) -> Condition:
    """If one thread reaches the barrier, in some iteration of the loops around it, so does every other of its block."""
    here = barrier.context
    common = [v.name for v in here.variables if v.kind != "thread"]
    there = _common(hypotheses, *common).context(here)
    threads = [v.range for v in there.variables if v.kind == "thread"]
    loops = [v.range for v in there.variables if v.kind == "loop"]
    given = (*hypotheses.facts, *here.path, *there.facts, *threads)
    goal = conjunction(*loops, *there.guards)
    return sequent("barrier", "all threads of a block reach this barrier together", given, goal, here.site)


def _shared(trace: Trace, hypotheses: Hypotheses) -> Iterator[Condition]:
    blocks = _blocks(trace)
    for pair in unordered(trace.skeleton):
        first, second = pair.first.access, pair.second.access
        if _may_conflict(first, second) and first.region.shared and second.region.shared:
            yield _disjoint(pair, _common(hypotheses, *blocks, *(v.name for v in pair.common)), hypotheses)


def _may_conflict(a: Access, b: Access) -> bool:
    """One of them writes, in one allocation, by an instruction whose time is known."""
    writes = "write" in (a.mode, b.mode)
    return writes and a.region.allocation == b.region.allocation and not a.intrinsic and not b.intrinsic


def _disjoint(pair: Unordered, renaming: Renaming, hypotheses: Hypotheses) -> Condition:
    first, second = pair.first.access, renaming.access(pair.second.access)
    given = (*hypotheses.facts, *first.context.path, *second.context.path, *pair.relation(renaming))
    goal = z3.Not(_overlap(first, second))
    if not (first.collective or second.collective):
        goal = z3.Or(_same(first.context, second.context, {"thread"}), goal)
    elif pair.first.access is pair.second.access:  # one and the same thread may stand for two, but not at once
        goal = z3.Or(equal(first.context.variables, second.context.variables), goal)
    return sequent("race", _conflict(first, second), given, goal, first.context.site)


def _global(trace: Trace, hypotheses: Hypotheses) -> Iterator[Condition]:
    accesses = [a for a in trace.accesses if a.region.scope == "global"]
    renaming = _common(hypotheses)
    for a, b in itertools.combinations_with_replacement(accesses, 2):
        covered = a.mode == b.mode == "write" and a.region.allocation in hypotheses.outputs
        if covered or not _may_conflict(a, b):
            continue
        second = renaming.access(b)
        given = (*hypotheses.facts, *a.context.path, *second.context.path)
        same = conjunction(*(i == j for i, j in zip(a.indices, second.indices, strict=True)))
        goal = z3.Or(_same(a.context, second.context, {"thread", "block"}), z3.Not(same))
        yield sequent("race", _conflict(a, second), given, goal, a.context.site)


def _same(a: Context, b: Context, kinds: set[str]) -> z3.BoolRef:
    """Both are executed by the same thread, or block."""
    ours, theirs = ([v.term for v in c.variables if v.kind in kinds] for c in (a, b))
    if len(ours) != len(theirs):
        raise Unsupported("accesses under different launch axes")
    return conjunction(*(x == y for x, y in zip(ours, theirs, strict=True)))


def _conflict(a: Access, b: Access) -> str:
    other = "" if a.context.site == b.context.site else f" in {b.context.site.text}"
    return f"no other thread's {b}{other} meets this {a} unordered"


def _overlap(a: Access, b: Access) -> z3.BoolRef:
    """The two elements share a byte."""
    if (a.region.offset, a.region.bits) == (b.region.offset, b.region.bits):
        return _flat(a) == _flat(b)
    return z3.And(_byte(a) < _byte(b) + _size(b), _byte(b) < _byte(a) + _size(a))


def _flat(a: Access) -> z3.ArithRef:
    """The position in the buffer, in elements."""
    flat = a.indices[0]
    for index, extent in zip(a.indices[1:], a.region.shape[1:], strict=True):
        flat = flat * extent + index
    return flat


def _byte(a: Access) -> z3.ArithRef:
    return a.region.offset + _flat(a) * _size(a)


def _size(a: Access) -> int:
    if a.region.bits % 8:
        raise Unsupported(f"elements of {a.region.bits} bits in shared memory")
    return a.region.bits // 8
