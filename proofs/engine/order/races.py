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

from ..access.instances import sequent
from ..access.intrinsics import MEET
from ..access.sites import sites
from ..access.trace import Access, Barrier, Instruction, Trace
from ..access.walk import walk
from ..access.wgmma import DESCRIPTOR
from ..base.conditions import Analysis, Condition, conjunction
from ..base.errors import Unsupported
from ..compiler import extract
from ..contract.hypotheses import Hypotheses
from .conflicts import conflict, same_execution
from .happens_before import within_roles
from .intervals import barriers, coarse, unordered
from .pairs import apart, renaming, within_block
from .timeline import roles


def races(
    prim_func: tirx.PrimFunc,
    hypotheses: Hypotheses,
    pass_configs: Mapping[str, object] | None = None,
    arch: str = extract.ARCH,
) -> Analysis:
    """The conditions of race freedom, kind "race", and of uniform barriers, kind "barrier", of the kernel as shipped.

    Modelled: loads, stores, warp-wide matrix loads and stores; that a product by wgmma reads its operands after its
    descriptor is made; barriers of the whole block, in loops and uniform branches. Not modelled, and listed: accesses by
    atomics and other intrinsics, and the order they impose. Asynchronous copies and products are asynchrony.py's, but
    where warps have roles: there they, mbarriers and barriers of a role are happens_before.py's.
    Repeated writes to one output element are coverage.py's. A global element that two threads exchange across a barrier
    is reported as a race.

    Raises:
        Unsupported: the kernel uses something that is not modelled, such as a barrier of part of a block.
    """
    guards = extract.shipped_with_guards(pass_configs)
    lowered = extract.lower(prim_func, guards=guards, pass_configs=pass_configs, arch=arch)
    thread = walk(lowered.thread, hypotheses)
    within = within_blocks(lowered.device, hypotheses)
    return within + Analysis(tuple(_global(thread, hypotheses)), thread.unmodelled, ())


def within_blocks(device: tirx.PrimFunc, hypotheses: Hypotheses) -> Analysis:
    """The conditions on the threads of one block: of shared memory, and of the barriers."""
    trace = walk(device, hypotheses)
    uniform = tuple(_uniform(b, hypotheses) for b in barriers(trace.skeleton))
    reached = sites(trace, hypotheses)
    if found := roles(trace):
        return Analysis(uniform, trace.unmodelled, reached) + within_roles(trace, found, hypotheses)
    for item in trace.program:
        if isinstance(item, Instruction) and item.name == MEET:
            raise Unsupported(f"barrier of some threads of the block: {item.context.site.text}")
    return Analysis((*uniform, *_shared(trace, hypotheses)), trace.unmodelled, reached)


def _uniform(barrier: Barrier, hypotheses: Hypotheses) -> Condition:
    """If one thread reaches the barrier, in some iteration of the loops around it, so does every other of its block."""
    here = barrier.context
    common = [v.name for v in here.variables if v.kind != "thread"]
    there = renaming(hypotheses, *common).context(here)
    threads = [v.range for v in there.variables if v.kind == "thread"]
    loops = [v.range for v in there.variables if v.kind == "loop"]
    given = (*hypotheses.facts, *here.path, *there.facts, *threads)
    goal = conjunction(*loops, *there.guards)
    return sequent("barrier", "all threads of a block reach this barrier together", given, goal, here.site)


def _shared(trace: Trace, hypotheses: Hypotheses) -> Iterator[Condition]:
    for pair in unordered(coarse(trace.skeleton, (Barrier,))):
        first, second = pair.first.access, pair.second.access
        if _may_conflict(first, second) and first.region.shared and second.region.shared:
            yield apart("race", conflict(first, second), [pair], within_block(pair, trace, hypotheses), hypotheses)


def _may_conflict(a: Access, b: Access) -> bool:
    """One of them writes, in one allocation, by an instruction whose time is known: a product reads, if later, too."""
    writes = "write" in (a.mode, b.mode)
    known = all(x.intrinsic in (None, DESCRIPTOR) for x in (a, b))
    return writes and known and a.region.allocation == b.region.allocation


def _global(trace: Trace, hypotheses: Hypotheses) -> Iterator[Condition]:
    accesses = [a for a in trace.accesses if a.region.scope == "global"]
    primed = renaming(hypotheses)
    for a, b in itertools.combinations_with_replacement(accesses, 2):
        covered = a.mode == b.mode == "write" and a.region.allocation in hypotheses.outputs
        if covered or not _may_conflict(a, b):
            continue
        second = primed.access(b)
        given = (*hypotheses.facts, *a.context.path, *second.context.path)
        met = conjunction(*(i == j for i, j in zip(a.indices, second.indices, strict=True)))
        goal = z3.Or(same_execution(a.context, second.context, {"thread", "block"}), z3.Not(met))
        yield sequent("race", conflict(a, second), given, goal, a.context.site)
