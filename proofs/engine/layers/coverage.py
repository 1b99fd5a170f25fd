"""Layer 1, coverage: every element of every output is written, and none twice, over the whole grid.

*Uniqueness* is asked of two executions side by side: if they write the same element, they are the same execution.

*Coverage* says that for every element some execution writes it, a statement with alternating quantifiers. It is proved
by naming the execution. For each write, the block (or step of a loop of varying length) is computed from the element:
the tile that holds it. Within the tile, that some thread, lane and step of the fixed loops hits the element follows by
counting: the map from them into the tile is injective, and there are as many of them as elements of the tile, so it is
onto. What is left is that the named execution is within the grid and passes the guards.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import z3
from tvm.tirx import PrimFunc

from ..access.instances import Renaming, agree, equal, names, sequent, symbols
from ..access.sites import sites
from ..access.trace import Access, Division, Trace, Variable
from ..access.walk import walk
from ..base.conditions import Analysis, Condition, Site, conjunction, disjunction
from ..base.errors import Unsupported
from ..compiler import extract
from ..compiler.extract import ARCH, Configs
from ..compiler.instructions import does
from ..contract.hypotheses import Hypotheses
from ..smt.bitvectors import linear, subterms
from ..smt.solve import decide
from .tiling import Choice, Tiling, elected, tile_of, tiling

_WRITERS = re.compile(r".*(tma_store|atomic|cluster_store|stg\d+|extern|::|tma_reduce|bulk).*")


def coverage(prim_func: PrimFunc, hypotheses: Hypotheses, pass_configs: Configs = None, arch: str = ARCH) -> Analysis:
    """Return the conditions, of kinds "coverage" and "uniqueness", of the kernel as shipped, at thread level.

    Plain and vectorised stores and those by TMA are modelled, if their tiles are laid at fixed strides in each dimension by
    one block index or loop variable, by its quotient and remainder, or by several of them, of which each steps over a share
    that the next goes through; others are Unsupported, and so is an output that is written by unmodelled intrinsics alone.
    """
    guards = extract.shipped_with_guards(pass_configs)
    trace = walk(extract.lower(prim_func, guards=guards, pass_configs=pass_configs, arch=arch).thread, hypotheses)
    conditions: list[Condition] = []
    for output in hypotheses.outputs:
        writes = [a for a in trace.accesses if a.mode == "write" and a.region.allocation == output]
        plain = [a for a in writes if a.intrinsic is None or does(a.intrinsic) == "bulk"]
        plain = [_by_dimension(a, hypotheses) for a in plain]
        conditions += _uniqueness(plain, hypotheses)
        if output in hypotheses.updated:
            continue
        if not plain and any(map(_WRITERS.fullmatch, trace.unmodelled)):
            raise Unsupported(f"{output} is written by unmodelled intrinsics: {sorted(trace.unmodelled)}")
        conditions += _coverage(output, plain, trace, hypotheses)
    for region, here in ((a.region, a.context) for a in trace.accesses if a.mode == "write"):
        if region.scope == "global" and region.allocation not in hypotheses.outputs:
            statement, given = f"{region.name}, which is no output, is not written", (*hypotheses.facts, *here.path)
            conditions.append(Condition("coverage", statement, given, z3.BoolVal(False), here.site))
    return Analysis(tuple(conditions), trace.unmodelled, sites(trace, hypotheses))


def _by_dimension(access: Access, hypotheses: Hypotheses) -> Access:
    """Return an access by address, which is in bounds, by dimensions.

    Unsupported if an extent but the first varies, or rows lie at strides of their own.
    """
    shape = hypotheses.shapes[access.region.allocation]
    if len(access.indices) == len(shape):
        return access
    strides = [z3.simplify(z3.Product([z3.IntVal(1), *shape[d + 1 :]])) for d in range(len(shape))]
    fixed = all(z3.is_int_value(s) and s.as_long() > 0 for s in strides)
    if not fixed or access.region.allocation in hypotheses.strides:
        raise Unsupported(f"{access} by its address, in rows whose length varies")
    first, *others = (access.indices[0] / stride for stride in strides)
    indices = (first, *(i % n for i, n in zip(others, shape[1:], strict=True)))
    return replace(access, indices=tuple(map(z3.simplify, indices)))


def _uniqueness(writes: Sequence[Access], hypotheses: Hypotheses) -> Iterator[Condition]:
    renaming = Renaming(frozenset(hypotheses.sizes))
    for a, b in itertools.combinations_with_replacement(writes, 2):
        second = renaming.access(b)
        given = (*hypotheses.facts, *a.context.path, *second.context.path)
        apart = z3.Not(conjunction(*(i == j for i, j in zip(a.indices, second.indices, strict=True))))
        statement = f"no element of {a.region.name} is written again in {b.context.site.text}"
        if a is b:
            same = equal(a.context.variables, second.context.variables)
            apart = z3.Or(apart, same, agree(a, second, hypotheses.sizes))
            statement = f"no two executions write the same element of {a.region.name}"
        # in integers, without the products of sizes that a contract bounds, most are plain; the others may permute bits
        plain = Condition("uniqueness", statement, tuple(linear(given)), apart, a.context.site)
        proved = decide(plain, witness=False, few=True).verdict == "proved"
        yield plain if proved else sequent("uniqueness", statement, given, apart, a.context.site)


def with_named_quotients(access: Access) -> tuple[Access, tuple[Division, ...]]:
    """Return the access with the quotients and remainders of block indices by constants named, and the divisions."""
    context = access.context
    blocks = [v.term for v in context.variables if v.kind == "block"]
    parts = (t for t in subterms((*access.indices, *context.guards)) if z3.is_idiv(t) or z3.is_mod(t))
    terms = [t.children() for t in parts if any(t.arg(0).eq(b) for b in blocks)]
    named = {(str(x), str(by)): (x, by) for x, by in terms if z3.is_int_value(by) and by.as_long() > 0}
    divisions = tuple(Division(x, by, z3.Int(f"{x} // {by}"), z3.Int(f"{x} % {by}")) for x, by in named.values())
    pairs = [(d.dividend / d.divisor, d.quotient) for d in divisions]
    pairs += [(d.dividend % d.divisor, d.remainder) for d in divisions]
    guards, indices = (tuple(z3.substitute(t, *pairs) for t in terms) for terms in (context.guards, access.indices))
    context = replace(context, facts=(*context.facts, *(d.definition for d in divisions)), guards=guards)
    return replace(access, indices=indices, context=context), divisions


class _Write(NamedTuple):
    """A write with a tile that was guessed for it."""

    access: Access
    tile: Tiling
    divisions: tuple[Division, ...]  # whose parts its indices mention
    inner: list[Variable]  # those that choose the element in the tile
    outer: list[Variable]  # those that choose the tile
    points: int  # how many assignments to the inner variables pass the local guards


def _written(access: Access, trace: Trace) -> _Write:
    named, divisions = with_named_quotients(access)
    tile, variables = tiling(named), named.context.variables
    inner, outer = ([v for v in variables if (v in tile.inner) is chosen] for chosen in (True, False))
    return _Write(named, tile, (*trace.divisions, *divisions), inner, outer, points(inner, tile.local_guards))


def _coverage(output: str, accesses: Sequence[Access], trace: Trace, hypotheses: Hypotheses) -> Iterator[Condition]:
    element = [z3.Int(f"{output}.{d}") for d in range(len(hypotheses.shapes[output]))]
    inside = [z3.And(e >= 0, e < n) for e, n in zip(element, hypotheses.shapes[output], strict=True)]
    given, cases = [*hypotheses.facts, *inside], []
    writes = [_written(a, trace) for a in accesses]
    for number, write in enumerate(writes):
        if write.tile.volume != write.points and len(writes) > 1:
            raise Unsupported(f"{output}: several writes, of which one leaves gaps in its tile")
        if write.points > write.tile.volume and any("AllReduce" in name for name in trace.unmodelled):
            what = "by several threads, perhaps with what AllReduce gives to all of them"
            raise Unsupported(f"{output} is written {what}")
        yield from _onto(write)
        hit, holds = _execution(write, element, frozenset(hypotheses.sizes), f"@{number}" if number else "")
        given.append(hit)
        cases.append(holds)
    site = accesses[0].context.site if accesses else Site(f"output {output}")
    yield Condition("coverage", f"every element of {output} is written", tuple(given), disjunction(*cases), site)


def _onto(write: _Write) -> Iterator[Condition]:
    """Yield the conditions that the inner variables hit every place of a tile once.

    The map from their values into the tile is injective, and there are as many of them as places. It is the same map in
    every tile, since it mentions the inner variables alone.
    """
    tile, inner = write.tile, write.inner
    site, name = write.access.context.site, write.access.region.name
    if strange := {d.name() for d in symbols([*tile.within, *tile.local_guards])} - {v.name for v in inner}:
        raise Unsupported(f"a tile of {name} whose shape depends on {', '.join(sorted(strange))}")
    given = (*(v.range for v in inner), *tile.local_guards)
    box = conjunction(*_in_box(tile, tile.within))
    yield sequent("coverage", f"a block's writes of {name} stay in its tile of {tile.edge}", given, box, site)
    renaming = Renaming(frozenset())
    other = [renaming.variable(v) for v in inner]
    again = (*given, *(v.range for v in other), *map(renaming.term, tile.local_guards))
    goal = z3.Or(z3.Not(conjunction(*(w == renaming.term(w) for w in tile.within))), equal(inner, other))
    yield sequent("coverage", f"a block writes no place of its tile of {name} twice", again, goal, site)
    count = z3.IntVal(write.points) if tile.local_guards else z3.Product([z3.IntVal(1), *(v.count for v in inner)])
    statement = f"a block makes {write.points} writes of {name}, its tile has {tile.volume} places"
    yield Condition("coverage", statement, (), count == z3.IntVal(tile.volume), site)


def _in_box(tile: Tiling, place: Sequence[z3.ArithRef]) -> list[z3.BoolRef]:
    return [z3.And(p >= low, p < low + edge) for p, low, edge in zip(place, tile.low, tile.edge, strict=True)]


def _execution(
    write: _Write, element: Sequence[z3.ArithRef], sizes: frozenset[str], suffix: str
) -> tuple[z3.BoolRef, z3.BoolRef]:
    """Return what is known of the execution of a write that is named for an element, and what is left to show of it.

    Known of its inner variables is that the tile is hit everywhere. Left to show is that it exists, passes the guards and
    writes the element.
    """
    tile, context = write.tile, write.access.context
    known = sizes | {e.decl().name() for e in element}
    chosen, shares = tile_of(tile, write.outer, element, (write.divisions, elected(context), context.guards), known)
    own = Renaming(known, suffix)

    def named(term: z3.ExprRef) -> z3.ExprRef:
        return own.term(z3.substitute(term, *chosen)) if suffix else z3.substitute(term, *chosen)

    _check_choice(write, chosen, known | _parts(shares, known))
    place = [e - named(b) for e, b in zip(element, tile.base, strict=True)]
    in_tile = _in_box(tile, place)
    defined = [d.definition for d in write.divisions if any(p.eq(x) for x, _ in chosen for p in d.parts)]
    exists = [*in_tile, *(named(v.range) for v in write.outer), *(named(d) for d in defined)]
    facts = [named(f) for f in context.facts if not any(f.eq(d) for d in defined)]
    inner = [*(v.range for v in write.inner), *tile.local_guards]
    at = [named(w) == p for w, p in zip(tile.within, place, strict=True)]
    somewhere = z3.Implies(conjunction(*in_tile), conjunction(*map(named, inner), *at))
    told = z3.Implies(conjunction(*exists), conjunction(*facts))
    hit = z3.And(somewhere, told, *(named(d.definition) for d in shares))
    writes = [named(i) == e for i, e in zip(write.access.indices, element, strict=True)]
    return hit, conjunction(*exists, *map(named, context.guards), *writes)


def _parts(shares: Sequence[Division], known: frozenset[str]) -> set[str]:
    """Return the names that are given to quotients and remainders of what is known; Unsupported if they have a meaning yet."""
    parts, of = [p for d in shares for p in d.parts], names(t for d in shares for t in (d.dividend, d.divisor))
    new = {str(p) for p in parts if names([p]) == {str(p)}} - known  # each a variable of its own, and no term
    if not of <= known or len(new) < len(parts):
        raise Unsupported(f"tiles whose share of a tensor depends on {', '.join(sorted(of - known))}")
    return new


def _check_choice(write: _Write, chosen: Sequence[Choice], known: frozenset[str]) -> None:
    """Raise Unsupported unless a choice names one tile for each element.

    Only what chooses the tile may be chosen. If a value, or the tile itself, depends on the inner variables or on what is
    read, then it does not follow that this tile is hit everywhere.
    """
    free = [*(v.term for v in write.outer), *(p for d in write.divisions for p in d.parts)]
    terms = [*(z3.substitute(b, *chosen) for b in write.tile.base), *(value for _, value in chosen)]
    strange = names(terms) - known - {v.name for v in write.outer}
    if strange := strange | {str(x) for x, _ in chosen if not any(x.eq(f) for f in free)}:
        raise Unsupported(f"a tile of {write.access.region.name} that depends on {', '.join(sorted(strange))}")


def points(variables: Sequence[Variable], guards: Sequence[z3.BoolRef]) -> int:
    """Return how many values of variables pass all guards; Unsupported unless ranges are fixed and guards on them alone."""
    guard = conjunction(*guards)
    mentioned = names([guard])
    guarded = [v for v in variables if v.name in mentioned]
    free = math.prod(len(_values(v)) for v in variables if v.name not in mentioned)
    terms, boxes = [v.term for v in guarded], [_values(v) for v in guarded]
    count = 0
    for point in itertools.product(*boxes):
        value = z3.simplify(z3.substitute(guard, *zip(terms, map(z3.IntVal, point), strict=True)))
        if not (z3.is_true(value) or z3.is_false(value)):
            raise Unsupported(f"a tile whose shape depends on {value}")
        count += bool(z3.is_true(value))
    return free * count


def _values(v: Variable) -> range:
    low, count = z3.simplify(v.low), z3.simplify(v.count)
    if not (z3.is_int_value(low) and z3.is_int_value(count)):
        raise Unsupported(f"a tile whose shape depends on {v.low if z3.is_int_value(count) else v.count}")
    return range(low.as_long(), low.as_long() + count.as_long())
