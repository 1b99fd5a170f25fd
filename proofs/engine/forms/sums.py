"""Sums over tiles: laws that relate a kernel's sums, tile by tile, to a reference's over all elements at once.

With [c] for 1 where c holds and 0 elsewhere,

    Sum_{k < n} f(k) = Sum_{t < T} Sum_{j < N} g(t, j)    if [t N + j < n] f(t N + j) = g(t, j) for t < T = ⌈n/N⌉, j < N
    Sum_{k < K} f(k) = Sum_{n < N} g(n)    if g(n) = [n < m] f(a ± n), 0 <= a ± n < K for n < m, f(k) = 0 for all other k,
                                           and m <= N or m < 1
    Sum_{i < m} f(i) = Sum_{u < n} [a <= u < a + m] f(u - a)    if 0 <= a and a + m <= n
    Sum_{i < c + n} f(i) = Sum_{i < c} f(i) + Sum_{i < n} f(c + i), c constant
    Sum_{k < n} f(k) = f(0) + ... + f(n - 1), n constant
    [Sum a_i [c_i] > 0] = [Sum [c_i] >= 1]    if a_i > 0

A kernel is compared with its reference in terms of the first sums' right sides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Literal, NamedTuple

from ..base.errors import Unsupported
from . import normal_form as nf
from .choices import few_elements, is_constant_sum
from .entailment import Facts
from .equations import holds
from .extended import Signs
from .normal_form import ONE, ZERO, Form
from .ring import Atom, Rational, Rewriting, common_monomial, support_of, total

Summand = Callable[[Form, Form], Form]  # what is summed, as a function of a tile and of an element of that tile
WITHIN = "within"
_SPLITS = 12


def tiles(extent: Form, tile: int) -> Form:
    """Return ⌈extent / tile⌉."""
    return nf.floordiv(extent + tile - 1, tile)


def by_tiles(extent: Form, tile: int, facts: Facts, summands: Sequence[tuple[Summand, Summand]]) -> nf.Rule:
    """Return the rule that a sum over an extent, whole or but for factors without its variable, is one of several over tiles.

    It says nothing of sums over other extents. Each of ``summands`` is a summand as it enters the sum, and the same with
    its abbreviations written out, to be compared.
    """
    t, j = nf.fresh("tile"), nf.fresh("j")
    facts.bound(t, tiles(extent, tile))
    facts.bound(j, nf.form(tile))
    element = t * tile + j
    inside = nf.nonnegative(extent - 1 - element)
    own = nf.support(t) | nf.support(j)

    def rule(over: Form, body: Callable[[Form], Form]) -> Form | None:
        if over is not extent:
            return None
        p = body(element)  # as the product of a factor without the variables, common to its terms, and the rest
        outside = tuple((a, e) for a, e in common_monomial(p) if own.isdisjoint(support_of(a)))
        outer, inner = nf.monomial_form(outside), p * nf.monomial_form(tuple((a, -e) for a, e in outside))
        if holds(inside * inner, ZERO, facts, _SPLITS):
            return ZERO
        for factor, rest in ((outer, inner), (ONE, outer * inner)):
            known = (g for g, compared in summands if holds(inside * rest, compared(t, j), facts, _SPLITS))
            if (summand := next(known, None)) is not None:
                return factor * nf.summation(tiles(extent, tile), lambda t: nf.summation(tile, partial(summand, t)))
        return None

    return rule


class Stretch(NamedTuple):
    """Indices from ``first`` on, up or down, ``extent`` of them, none if that is less than 1."""

    first: Form
    step: Literal[1, -1]
    extent: Form


def along(extent: Form, stretch: Stretch, summand: tuple[Form, Callable[[Form], Form]], facts: Facts) -> nf.Rule:
    """Return the rule that a sum over an extent is that of ``summand``, since what is summed is 0 but along a stretch.

    ``summand`` is a number of indices and a function g of them. The rule says nothing of other sums.
    """
    (first, step, m), (length, g) = stretch, summand
    k, n = nf.fresh("k"), nf.fresh("n")
    facts.bound(k, extent)
    facts.bound(n, length)
    number, place = (k - first) * step, first + step * n
    here = nf.nonnegative(number) * nf.nonnegative(m - 1 - number)
    inside = nf.nonnegative(m - 1 - n)
    longer = nf.nonnegative(m - 1) * nf.nonnegative(m - 1 - length)
    exists = nf.nonnegative(place) * nf.nonnegative(extent - 1 - place)

    def rule(over: Form, body: Callable[[Form], Form]) -> Form | None:
        if over is not extent or not facts.holds(ONE - longer):
            return None
        elsewhere, there, summed = body(k), body(place), g(n)
        with facts.assuming(inside):
            shown = facts.holds(exists) and holds(there, summed, facts, _SPLITS)
        for condition, value in ((ONE - here, elsewhere), (ONE - inside, summed)):
            with facts.assuming(condition):
                shown = shown and holds(value, ZERO, facts, _SPLITS)
        return nf.summation(length, g) if shown else None

    return rule


def spread(extent: Form, first: Form, constant: int, rest: Form, facts: Facts, change: Rewriting) -> Rewriting:
    """Return the rewriting of sums over ``extent`` indices as parts, from ``first`` on, of sums over ``constant + rest``.

    Which indices those are is abbreviated by ``within``; Unsupported if they are not known to be some of those. What is
    summed from ``constant`` on is changed by an equality that the caller knows.
    """
    last = first + extent - 1
    for natural in (first, extent, rest, constant + rest - 1 - last):
        if not facts.holds(nf.nonnegative(natural)):
            raise Unsupported(f"a sum over {extent} indices from {first} on as part of one over {constant + rest}")

    def spread_out(big: nf.Big) -> Form:
        def part(u: Form) -> Form:
            return within(u) * nf.opened(big, u - first)

        few = sum((part(nf.form(u)) for u in range(constant)), ZERO)
        return few + nf.summation(rest, lambda u: change(part(constant + facts.bound_fresh(u, rest))))

    return nf.rewriting(lambda a: isinstance(a, nf.Big) and a.operator == "sum" and a.extent is extent, spread_out)


def within(u: Form) -> Form:
    """Return an abbreviation of [first <= u < first + extent]."""
    return nf.nonnegative(nf.apply(WITHIN, u))


def written_out(p: Form, first: Form, extent: Form) -> Form:
    """Return the form without that abbreviation."""
    ge = partial(nf.indicator, "ge", integer=True)
    return nf.replacing(WITHIN, lambda u: ge(u - first) * ge(first + extent - 1 - u) - 1)(p)


def few_written_out(p: Form) -> Form:
    """Return the form with the sums over few elements written out that are factors of its terms, not inside other atoms."""
    direct = {n: a for m in p.terms for n, _ in m if isinstance(a := nf.atom_of(n), nf.Big) and a.operator == "sum"}
    few = {n: range(int(big.extent.constant)) for n, big in direct.items() if big.extent.constant is not None}
    return nf.substitute(p, {n: sum((nf.opened(direct[n], nf.form(k)) for k in few[n]), ZERO) for n in few})


def all_written_out(p: Form) -> Form:
    """Return the form with each sum over a constant number of elements written out, if these are not too many together.

    Sums over tiles that lie side by side, in any order, are then the sum over all of their elements.
    """

    def elements(big: Atom) -> Form | None:
        if not isinstance(big, nf.Big) or big.operator != "sum" or (size := big.extent.constant) is None:
            return None
        return total(write(nf.opened(big, nf.form(k))) for k in range(int(size)))

    write = nf.rewriting(is_constant_sum, elements)
    return write(p) if few_elements(p) else p


def counted() -> Rewriting:
    """Return the rewriting of [p > 0] to [n >= 1], where p is a sum of positive terms under conditions, n their number."""
    signs = Signs(frozenset())

    def at_most_0(atom: nf.Indicator) -> Form | None:
        count = _count(-atom.form, signs)
        return None if count is None else ONE - nf.nonnegative(count - 1)

    return nf.rewriting(lambda a: isinstance(a, nf.Indicator) and a.relation == "ge" and not a.integer, at_most_0)


def some_of(p: Form) -> Form:
    """Return [p > 0] of a number that is not negative; of positive terms under one condition, that condition."""
    count = _count(p, Signs(frozenset()))
    conditions = list(count.terms) if count is not None else []
    if len(conditions) == 1 and all(isinstance(nf.atom_of(a), nf.Indicator) for a, _ in conditions[0]):
        return nf.monomial_form(conditions[0])
    return ONE - nf.indicator("ge", -p, integer=False)


def _count(p: Form, signs: Signs) -> Form | None:
    """Return how many terms of a sum of positive terms under conditions are there; None if it is no such sum."""
    result = ZERO
    for monomial, coefficient in p.terms.items():
        found = [c for a, e in monomial if (c := _count_factor(a, e, signs)) is not None]
        if coefficient <= 0 or len(found) < len(monomial):
            return None
        result = result + reduce(Form.__mul__, found, ONE)
    return result


def _count_factor(number: int, exponent: Rational, signs: Signs) -> Form | None:
    atom = nf.atom_of(number)
    if isinstance(atom, nf.Indicator):
        return nf.of_atom(atom)
    if isinstance(atom, nf.Big) and atom.operator == "sum" and exponent == 1:
        k = nf.fresh("k")
        inner = _count(nf.opened(atom, k), signs)
        return inner and nf.summation(atom.extent, lambda i: nf.substitute(inner, {nf.number(k): i}))
    return ONE if signs.monomial(((number, exponent),)) == "positive" else None
