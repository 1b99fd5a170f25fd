"""What must hold for mbarriers to order roles as phases.py says, and for all waits to end.

``docs/order.md`` shows that these conditions suffice.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator

import z3

from ..access.instances import at, sequent, symbols
from ..base.conditions import Condition
from ..base.errors import Unsupported
from ..contract.hypotheses import Hypotheses
from .phases import Mbarrier, Met, Phases, behind, counted, parity
from .roles import AFTER, INSIDE


def conditions(phases: Phases, hypotheses: Hypotheses) -> Iterator[Condition]:
    """Yield what must hold for the order to be as described, and for all waits to end."""
    yield from _equally_often(phases, hypotheses)
    threads = phases.block.threads
    for met in phases.met:
        if others := threads.others(met.event.context, met.role):
            given = (*hypotheses.facts, *threads.plainly(met.event.context, met.role))
            what = f"all of {met.role} reach this, every time"
            yield sequent("phase", what, given, z3.And(*others), met.event.context.site)
    for barrier in phases.barriers:
        if of := (*barrier.arrivals, *barrier.waits):
            come = sum(len(s.role.threads) for s in barrier.arrivals)
            each = {"iteration": "in an iteration", "round": "in a round", "block": "at all"}[barrier.pace]
            what = f"{barrier.name} counts {barrier.count} arrivals, and {come} come {each}"
            yield at(of[0].event.context, "phase", what, z3.BoolVal(come == barrier.count), hypotheses.facts)
        if barrier.pace != "block":
            yield from _in_phase(phases, barrier, hypotheses)
        for wait in barrier.waits:
            reason = _stuck(phases, barrier, wait)
            what = f"each of {wait.role} gets past this wait at {barrier.name}, in every timing"
            what += f"; not so: {reason}" if reason else ""
            yield at(wait.event.context, "deadlock", what, z3.BoolVal(not reason), hypotheses.facts)


def _equally_often(phases: Phases, hypotheses: Hypotheses) -> Iterator[Condition]:
    """Yield that roles run their loops equally often; in rounds, that each of these is as long, and no loop in it is empty."""
    block = phases.block
    renaming, threads = block.renaming(hypotheses), block.threads
    rounds = [(met, met.round) for met in _first(phases, lambda met: met.role.round is not None)]
    loops = [(met, met.loop) for met in _first(phases, lambda met: met.part == INSIDE)]
    for of, which in ((rounds, "rounds"), (loops, "loops")):
        for (here, loop), (there, second) in itertools.combinations_with_replacement(of, 2):
            given = [*hypotheses.facts, *threads.plainly(here.event.context, here.role, ("block", "thread"))]
            given += map(renaming.term, threads.plainly(there.event.context, there.role, ("block", "thread")))
            goal = loop.count == renaming.variable(second).count
            what = f"{here.role} and {there.role} run their {which} equally often"
            yield sequent("phase", what, given, goal, here.event.context.site)
    for here, loop in loops if rounds else []:
        if not _same_in_rounds(loop.count, hypotheses, block.blocks):
            raise Unsupported(f"rounds that may differ in length: {loop.name} takes {loop.count} values")
        given = [*hypotheses.facts, *threads.plainly(here.event.context, here.role, ("block", "thread"))]
        what = f"{here.role} run their loop at least once in each round"
        yield sequent("phase", what, [*given, here.round.range], loop.count >= 1, here.event.context.site)


def _same_in_rounds(term: z3.ArithRef, hypotheses: Hypotheses, blocks: Collection[str]) -> bool:
    """Return whether a term has one value in all rounds of a block, in every thread.

    It is made of sizes, of the block's indices, and of elements of tensors at indices of these. An element is a function of
    its index only if no statement of the kernel writes the tensor: of what one writes, each read is an unknown of its own.
    """
    known = {*hypotheses.sizes, *blocks}
    return all(s.name() in (hypotheses.shapes if s.arity() else known) for s in symbols([term]))


def _first(phases: Phases, suits: Callable[[Met], bool]) -> list[Met]:
    """Return what each role meets first, of what suits."""
    each = ([met for met in phases.met if met.role is role and suits(met)] for role in phases.block.roles)
    return [met[0] for met in each if met]


def _in_phase(phases: Phases, barrier: Mbarrier, hypotheses: Hypotheses) -> Iterator[Condition]:
    """Yield that phases end one after the other as they are counted, and which one each wait is for."""
    further, most = (0, 1) if barrier.pace == "iteration" else (phases.graph.span, 0)
    what = f"no thread arrives at {barrier.name} for the next {barrier.pace} before all have arrived for this one"
    for a, b in itertools.product(barrier.arrivals, repeat=2):
        goal = z3.BoolVal(_at_most(phases.graph.least(a.done, b.node + further), most))
        yield at(b.event.context, "phase", what, goal, hypotheses.facts)
    for wait in barrier.waits:
        if (later := behind(barrier, wait)) is None:
            continue
        which = f"the {barrier.pace} before" if later else f"its {barrier.pace}"
        if barrier.pace == "iteration" and wait.part != INSIDE:
            which = "the last iteration before it"
            yield from _nearly(phases, barrier, wait, hypotheses)
        what = f"this waits at {barrier.name} for the phase of {which}"
        goal = parity(wait) == (counted(barrier, wait) + later) % 2
        yield at(wait.event.context, "phase", what, goal, hypotheses.facts)


def _nearly(phases: Phases, barrier: Mbarrier, wait: Met, hypotheses: Hypotheses) -> Iterator[Condition]:
    """Yield that all phases but the last are over when a wait outside the loop begins, so that it is for the last one."""
    further = 0 if wait.part == AFTER else phases.graph.span
    what = f"all have arrived at {barrier.name} for all iterations but the last before this wait begins"
    for arrival in barrier.arrivals if wait.part == AFTER or further else []:
        goal = z3.BoolVal(_at_most(phases.graph.least(arrival.done, wait.node + further), 1))
        yield at(wait.event.context, "phase", what, goal, hypotheses.facts)


def _stuck(phases: Phases, barrier: Mbarrier, wait: Met) -> str:
    """Return why a wait may last for ever; nothing if it cannot."""
    later, least = behind(barrier, wait), phases.graph.least
    if not barrier.arrivals:
        return "nobody arrives"
    if later is None:
        return "which phase it waits for is not known"
    for arrival in barrier.arrivals:
        weight = least(wait.done, arrival.done, orders=False)
        if later == 0 and (arrival.part > wait.part or weight == 0):
            return f"{arrival.role} arrive only after it"
    if (following := _following(phases, barrier, wait, later)) is not None:
        further, most = following
        # by paths from the wait to an arrival, of one thread if it does both
        weights = (least(wait.done, a.node + further, orders=wait.role is not a.role) for a in barrier.arrivals)
        if not any(_at_most(weight, most) for weight in weights):
            return "the phase after may end before it is seen that this one has"
    return ""


def _following(phases: Phases, barrier: Mbarrier, wait: Met, later: int) -> tuple[int, int] | None:
    """Return how far from a wait someone arrives for the phase after: nodes, and iterations at most; None if nobody does."""
    span = phases.graph.span
    if barrier.pace == "iteration" and wait.part != AFTER:
        return 0, 1 - later
    if barrier.pace == "round" and later:
        return 0, 0
    return (span, 0) if span else None


def _at_most(weight: int | None, most: int) -> bool:
    return weight is not None and weight <= most
