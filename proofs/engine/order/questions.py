"""Layer 1, order: nothing is touched unordered, what runs on beside the threads has ended, and nobody waits for ever.

Shared memory and registers are read at device level, where the compiler has placed the barriers and laid buffers out in
one arena. The threads of one block run side by side; any two accesses that are not ordered on every run must be by the
same thread, both reads, or of different bytes. No order within a warp is assumed.

Global memory is read at thread level. A barrier does not order two blocks, so none is counted: an element that one thread
writes must not be touched by another thread of the grid. Of two accesses by one block it is unknown where there are
barriers. The source of an asynchronous copy is read like any other.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import z3
from tvm.tirx import PrimFunc

from ..access.instances import Renaming, at, constants, equal, sequent
from ..access.sites import sites
from ..access.trace import Access, Branch, Context, Event, Loop, Node, Segment, Trace, value_of
from ..access.walk import walk
from ..base.conditions import Analysis, Condition, Outcome, conjunction, disjunction
from ..compiler import extract
from ..compiler.extract import ARCH, Configs
from ..compiler.instructions import does, names
from ..contract.hypotheses import Hypotheses
from .ordered import Ordered, flat, same_execution
from .possible import among_roles, operations
from .progress import kind
from .roles import Block, Role, accesses, block_of, events
from .waits import conditions as waiting
from .words import named, unmet

READERS_FENCE = "proxy fence after the barrier"  # taken to do as well as one before it
_ALWAYS = names(
    "copy", "commit", "await", "describe", "advance", "product", "batch", "finish", "registers", "fence",
    "bulk", "close", "drain",
)  # fmt: skip
_PHASES = names("init", "publish", "arrive", "copied", "wait", "barrier")
MODELLED = _ALWAYS | _PHASES
"""Instructions of which each access stands in a condition, and whose order the conditions account for."""

_WARP, _WARPGROUP = 32, 128
_WAITING = ("barrier", "phase", "deadlock")


def order(prim_func: PrimFunc, hypotheses: Hypotheses, pass_configs: Configs = None, arch: str = ARCH) -> Analysis:
    """Return the conditions that put accesses in order, of the kernel as shipped.

    Kinds: "race", of accesses that threads make; "async", of copies, products and registers; "barrier", that barriers are
    met by all; "phase", that mbarriers count as they should; "deadlock", that each wait is passed;
    "launch", that a kernel that is launched early waits.

    Not modelled, and listed: loads by TMA, accesses by other intrinsics, and the order they impose. Repeated writes to one
    output element are coverage.py's. Whether a barrier, or the end of a copy, orders two accesses of one block to global
    memory is not known. What else the kernel uses that is not modelled, such as a wait for a varying number of groups, is
    Unsupported.
    """
    guards = extract.shipped_with_guards(pass_configs)
    lowered = extract.lower(prim_func, guards=guards, pass_configs=pass_configs, arch=arch)
    thread = walk(lowered.thread, hypotheses)
    conditions = (*_global(thread, hypotheses), *_launch(thread, hypotheses))
    return within_blocks(lowered.device, hypotheses) + Analysis(conditions, thread.unmodelled, ())


def within_blocks(device: PrimFunc, hypotheses: Hypotheses) -> Analysis:
    """Return the conditions on the threads of one block, of a function at device level."""
    trace = walk(device, hypotheses)
    block = block_of(trace)
    ordered = Ordered(block, hypotheses)
    whole = (e.context for e in events(trace.nodes) if e.whole)
    conditions = [_together(here, hypotheses, "all threads of a block reach this barrier") for here in whole]
    election = "all threads of a warp get to this election"
    conditions += [_of_group(_WARP, here, block, hypotheses, election) for here in trace.elections]
    assumed: set[str] = set()
    for role in block.roles:
        meetings = list(ordered.meetings(role))
        conditions += [*_barriers_of(role, block, hypotheses), *_operations(role, ordered, hypotheses)]
        conditions += ordered.within(role, meetings)
        assumed |= {READERS_FENCE} if ordered.relies_on_readers(role) else set()
    if ordered.phases is not None:
        conditions += [*waiting(ordered.phases, hypotheses), *ordered.among()]
    elif not block.phased:  # what cannot be decided fails
        what = "each thread gets past this wait, in every timing; not decided: what arrives there is not modelled"
        waits = (event for role in block.roles for _, event in role.events("wait"))
        conditions += [at(e.context, "deadlock", what, z3.BoolVal(False), hypotheses.facts) for e in waits]
    possible = (*sites(trace, hypotheses), *operations(trace, block, hypotheses), *among_roles(ordered, hypotheses))
    modelled = MODELLED if block.phased else _ALWAYS
    return Analysis(tuple(conditions), trace.unmodelled - modelled | assumed, possible, modelled)


def deadlock_free(outcomes: Iterable[Outcome], unmodelled: Iterable[str]) -> tuple[str, ...]:
    """Return the statement that nobody waits for ever, if that is what was shown."""
    waiting = [o for o in outcomes if o.condition.kind in _WAITING]
    if any(o.verdict != "proved" for o in waiting):
        return ()
    aside = sorted({*unmodelled} - names("hint") - {READERS_FENCE})
    what = f", but for what is not modelled ({', '.join(aside)})" if aside else ""
    return (f"deadlock-free: every thread gets past each barrier and each wait, in every timing{what}",)


def _together(here: Context, hypotheses: Hypotheses, what: str, *alike: z3.BoolRef) -> Condition:
    """Return that all threads of a block that are alike get there if one does, in some iteration of loops around."""
    common = [v.name for v in here.variables if v.kind != "thread"]
    there = Renaming(frozenset(hypotheses.sizes) | {*common}).context(here)
    threads = [v.range for v in there.variables if v.kind == "thread"]
    loops = [v.range for v in there.variables if v.kind == "loop"]
    given = (*hypotheses.facts, *here.path, *there.facts, *threads, *alike)
    private = any(c.decl().name().startswith("local") for c in constants(here.guards))  # may be the same in all threads
    perhaps = [z3.Bool(value_of("private memory that decides on a barrier"))] if private else []
    goal = disjunction(conjunction(*loops, *there.guards), *perhaps)
    return sequent("barrier", f"{what} together", given, goal, here.site)


def _barriers_of(role: Role, block: Block, hypotheses: Hypotheses) -> Iterator[Condition]:
    """Yield that each barrier of part of the block is of one role, all of whose threads reach it together."""
    for _, event in role.events("barrier"):
        if not event.whole:
            here = event.context
            alike = block.renaming(hypotheses, *(v.name for v in here.variables if v.kind != "thread"))
            members = map(alike.term, block.threads.plainly(here, role, ()))
            yield _together(here, hypotheses, f"all of {role} reach this barrier", *members)
            what, goal = f"this barrier is of {role} and no others", z3.BoolVal(block.whole(event, role))
            yield at(here, "barrier", what, goal, hypotheses.facts)


def _of_group(size: int, here: Context, block: Block, hypotheses: Hypotheses, what: str) -> Condition:
    """Return that all of so many threads get there if one of them does, whatever the guards read."""
    (thread,) = block.threads.variables
    other = block.renaming(hypotheses, *(v.name for v in here.variables if v.kind != "thread")).term(thread.term)
    return _together(here, hypotheses, what, other / size == thread.term / size)


def _operations(role: Role, ordered: Ordered, hypotheses: Hypotheses) -> Iterator[Condition]:
    """Yield what copies, products and stores by TMA need of the program around them.

    Products are of whole warpgroups, come after a fence of registers, and read within the buffers that their descriptors
    were made of; stores by TMA have read shared memory before the block, and its shared memory, ends.
    """
    products = [a for node in role.nodes for a in accesses(node) if kind(a) == "result" and a.mode == "write"]
    for context in {id(a.context.guards): a.context for a in products}.values():
        threads = ordered.block.threads.at(context)
        of = [set(range(n, n + _WARPGROUP)) <= threads for n in {t - t % _WARPGROUP for t in threads}]
        what = f"{role}: products are of whole warpgroups"
        yield at(context, "async", what, z3.BoolVal(all(of)), hypotheses.facts)
        if ordered.block.threads.others(context, role):
            what = f"{role}: all threads of a warpgroup issue this product"
            yield _of_group(_WARPGROUP, context, ordered.block, hypotheses, what)
    for product in products:
        if ordered.unfenced(role, product):
            what = f"a warpgroup_arrive comes before this {named(product)}"
            yield at(product.context, "async", what, z3.BoolVal(False), hypotheses.facts)
    for a in (a for node in role.nodes for a in accesses(node) if kind(a) == "operand"):
        goal = z3.And(a.indices[0] >= 0, a.indices[0] < a.region.shape[0])
        yield at(a.context, "async", f"this {named(a)} lies within {a.region.name}", goal, hypotheses.facts)
    for a in ordered.unread(role):
        what = f"this {named(a)} is over before the block ends"
        yield at(a.context, "async", what, z3.BoolVal(False), hypotheses.facts)


def _global(trace: Trace, hypotheses: Hypotheses) -> Iterator[Condition]:
    """Yield for each two accesses to global memory the condition that they are by one thread or of different elements."""
    tensors = [a for a in trace.accesses if a.region.scope == "global"]
    known = [a for a in tensors if a.intrinsic is None or does(a.intrinsic) in ("copy", "atomic", "bulk")]
    primed = Renaming(frozenset(hypotheses.sizes))
    for a, b in itertools.combinations_with_replacement(known, 2):
        effects, modes = {does(a.intrinsic or ""), does(b.intrinsic or "")}, {a.mode, b.mode}
        covered = effects <= {None, "bulk"} and modes == {"write"} and a.region.allocation in hypotheses.outputs
        apart = modes == {"read"} or a.region.allocation != b.region.allocation
        if covered or apart or effects == {"atomic"}:
            continue
        second = primed.access(b)
        given = (*hypotheses.facts, *a.context.path, *second.context.path)
        goal = z3.Not(_same_element(a, second, hypotheses))
        if not effects & {"copy", "bulk"}:  # in program order, if by one thread
            goal = z3.Or(same_execution(a.context, second.context, {"thread", "block"}), goal)
        elif a is b:
            goal = z3.Or(equal(a.context.variables, second.context.variables), goal)
        for near, ordering in _perhaps_ordered(a, second, trace):
            yield sequent("race", unmet(a, second), given, z3.Or(near, goal, ordering), a.context.site)


def _perhaps_ordered(a: Access, b: Access, trace: Trace) -> Iterator[tuple[z3.BoolRef, z3.BoolRef]]:
    """Yield the cases of two accesses to global memory: what is in another case, and what may order those in this one."""
    copied, never = "copy" in (does(a.intrinsic or ""), does(b.intrinsic or "")) and a is not b, z3.BoolVal(False)
    if copied or any(e.does == "barrier" for e in events(trace.nodes)) or any("Barrier" in n for n in trace.unmodelled):
        near = same_execution(a.context, b.context, {"thread", "block"} if copied else {"block"})
        what = "the end of a copy" if copied else "a barrier between accesses to global memory"
        yield near, never
        yield z3.Not(near), z3.Bool(value_of(what))
    else:
        yield never, never


def _same_element(a: Access, b: Access, hypotheses: Hypotheses) -> z3.BoolRef:
    """Return that two accesses to one tensor are to one element; one of them may take the tensor as a row."""
    if len(a.indices) == len(b.indices):
        return conjunction(*(i == j for i, j in zip(a.indices, b.indices, strict=True)))
    strides = hypotheses.strides.get(a.region.allocation)
    return flat(a, strides) == flat(b, strides)


def _launch(trace: Trace, hypotheses: Hypotheses) -> Iterator[Condition]:
    """Yield for each access to global memory that its thread has waited for the kernels launched before this one.

    TileLang launches a kernel early as soon as it holds one wait for the kernels before it, wherever that stands.
    """
    if any(e.does == "grids" for e in events(trace.nodes)):
        for access, waited in _touched(trace.nodes, []):
            what = f"the kernels launched before have ended at this {access}"
            given = (*hypotheses.facts, *access.context.path)
            yield Condition("launch", what, given, disjunction(*waited), access.context.site)


def _touched(nodes: Sequence[Node], waited: list[z3.BoolRef]) -> Iterator[tuple[Access, tuple[z3.BoolRef, ...]]]:
    """Yield the accesses to global memory, each with the conditions under any of which a wait came before it."""
    for node in nodes:
        match node:
            case Segment():
                yield from ((a, tuple(waited)) for a in node.accesses if a.region.scope == "global")
            case Event(does="grids"):
                waited.append(conjunction(*node.context.guards))
            case Branch(arms=(then, otherwise)):
                yield from itertools.chain(_touched(then, waited), _touched(otherwise, waited))
            case Loop(body=body):  # which may end before its first iteration
                yield from _touched(body, list(waited))
