"""The normal form of a real expression: a polynomial, with negative exponents, over opaque atoms.

Every expression of the symbolic reading is a ``Form``, of the ring in ``ring``. Here are its atoms, each with a
constructor that rewrites by these laws, and no others:

    exp(a + b) = exp(a) exp(b), exp(log x) = x          [p < 0] = 1 - [p >= 0]
    log(exp(a) x) = a + log x
    sums are linear; constants leave them               Sum_{k < n+1} f = Sum_{k < n} f + f(n), n natural
    max is associative, commutative and idempotent      a sum or maximum over few elements is written out
    floor((a n + b) / n) = a + floor(b / n), n constant

The laws of log hold where x is positive: the range layer proves that of every logarithm of a kernel. Two forms that are not
the same object may still denote the same function: ``equations.equal`` decides that for rational functions of the atoms.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from math import gcd
from typing import Any, ClassVar, Literal

from ..base.setting import Setting
from . import ring, summing
from .ring import ONE as ONE
from .ring import ZERO as ZERO
from .ring import Atom, Change, Rational, Rewriting, number_of, of_terms, single, support_of, total
from .ring import Form as Form
from .ring import atom_of as atom_of
from .ring import form as form
from .ring import free_levels as free_levels
from .ring import monomial_form as monomial_form
from .ring import number as number
from .ring import of_atom as of_atom
from .ring import substitute as substitute
from .ring import support as support
from .summing import splitting as splitting
from .summing import tiled as tiled

LONGEST_SUM, LONGEST_MAX = 16, 64
"""The largest constant extents for which a sum, or a maximum, is written out."""


@dataclass(frozen=True, slots=True)
class Variable(Atom):
    """A number by name. A natural one is an integer and not negative: a size, a loop variable, a thread."""

    name: str
    kind: Literal["natural", "integer", "real"] = "natural"


@dataclass(frozen=True, slots=True)
class Bound(Atom):
    """The variable of the sum or maximum of that level."""

    level: int


@dataclass(frozen=True, slots=True)
class Read(Atom):
    """An element of an input."""

    buffer: str
    index: tuple[Form, ...]

    def _rebuild(self, change: Change) -> Form:
        return read(self.buffer, *map(change, self.index))


@dataclass(frozen=True, slots=True)
class Apply(Atom):
    """An uninterpreted function."""

    function: str
    arguments: tuple[Form, ...]

    def _rebuild(self, change: Change) -> Form:
        return apply(self.function, *map(change, self.arguments))


@dataclass(frozen=True, slots=True)
class Exp(Atom):
    """The exponential of one monomial; a factor of the argument is the exponent of this atom."""

    argument: Form

    def _rebuild_power(self, exponent: Rational, change: Change) -> Form:
        return exp(change(self.argument) * exponent)


@dataclass(frozen=True, slots=True)
class Max(Atom):
    """The largest of several values, of which those under a condition (``where``) count where it holds."""

    entries: frozenset[Form]

    def _rebuild(self, change: Change) -> Form:
        return maximum(map(change, self.entries))


@dataclass(frozen=True, slots=True)
class Indicator(Atom):
    """1 if the form is at least 0 ("ge"), or is 0 ("eq"), else 0."""

    relation: Literal["ge", "eq"]
    form: Form
    integer: bool
    idempotent: ClassVar[bool] = True

    def _rebuild(self, change: Change) -> Form:
        return indicator(self.relation, change(self.form), integer=self.integer)


@dataclass(frozen=True, slots=True)
class Big(Atom):
    """Sum or maximum of the body over ``Bound(level)`` from 0 to the extent, which is excluded."""

    operator: Literal["sum", "max"]
    level: int
    extent: Form
    body: Form
    binds: ClassVar[bool] = True

    def _rebuild(self, change: Change) -> Form:
        extent = change(self.extent)
        if self.operator == "max":
            return _maximum_over(extent, *_beneath(self, change))
        other = _other_sum(extent, lambda k: change(opened(self, k)))
        return _distributed(extent, *_beneath(self, change), split=summing.splits()) if other is None else other


def variable(name: str, kind: Literal["natural", "integer", "real"] = "natural") -> Form:
    """Return the form of a variable."""
    return of_atom(Variable(name, kind))


_serial = itertools.count()


def fresh(name: str) -> Form:
    """Return a natural variable unlike any other."""
    return variable(f"{name}~{next(_serial)}")


def read(buffer: str, *index: Form | Rational) -> Form:
    """Return an element of an input."""
    return of_atom(Read(buffer, tuple(form(i) for i in index)))


def apply(function: str, *arguments: Form | Rational) -> Form:
    """Return a function of its arguments: opaque but for ``log``, ``where`` and the quotient ``floordiv`` by a constant."""
    forms = tuple(map(form, arguments))
    if function in ("log", "where"):
        return (log if function == "log" else where)(*forms)
    divisor = forms[-1].constant if function == "floordiv" else None
    return floordiv(forms[0], int(divisor)) if divisor and divisor > 0 else of_atom(Apply(function, forms))


def where(condition: Form, value: Form) -> Form:
    """Return a value that counts in a maximum only where the condition, a form that is 0 or 1, holds."""
    return value if condition is ONE else of_atom(Apply("where", (condition, value)))


def conditional(entry: Form) -> tuple[Form, Form]:
    """Return the condition and the value of an entry of a maximum."""
    match single(entry):
        case Apply("where", (condition, value)):
            return condition, value
    return ONE, entry


def multiple(a: Form, divisor: int) -> tuple[Form, Form]:
    """Return w and r with a = divisor w + r, where w takes up the terms that are multiples of the divisor."""
    terms = {m: Fraction(c) / divisor for m, c in a.terms.items() if m and Fraction(c, divisor).denominator == 1}
    whole = of_terms({m: int(c) for m, c in terms.items()}) + int(Fraction(a.terms.get((), 0)) // divisor)
    return whole, a - whole * divisor


def floordiv(a: Form, divisor: int) -> Form:
    """Return the quotient, rounded down, of an integer by a positive constant; what that divides is split off."""
    whole, rest = multiple(a, divisor)
    return whole if rest.constant is not None else whole + of_atom(Apply("floordiv", (rest, form(divisor))))


def exp(p: Form) -> Form:
    """Return exp(p), with a factor for each term of p."""
    result = ONE
    for monomial, coefficient in p.terms.items():
        rate = Fraction(coefficient)
        exponent = int(rate) if rate.denominator == 1 else rate
        argument = monomial_form(monomial)
        match single(argument):
            case Apply("log", (inner,)) if exponent is not rate:
                result = result * inner**exponent
            case _:
                result = result * of_atom(Exp(argument), exponent)
    return result


def log(p: Form) -> Form:
    """Return log(p), opaque but for the exps that are factors of p."""
    rest, inside = without_exps(p)
    return inside + (ZERO if rest is ONE else of_atom(Apply("log", (rest,))))


def without_exps(p: Form) -> tuple[Form, Form]:
    """Return p without the exps that are factors of it, and the log of those."""
    powers = [(a, e) for a, e in ring.common_monomial(p) if isinstance(atom_of(a), Exp)]
    inside = [a.argument * e for a, e in ((atom_of(a), e) for a, e in powers) if isinstance(a, Exp)]
    return p * of_terms({tuple((a, -e) for a, e in powers): 1}), reduce(Form.__add__, inside, ZERO)


def indicator(relation: Literal["ge", "eq"], p: Form, *, integer: bool) -> Form:
    """Return [p >= 0] or [p = 0], of an integer or of a real number; exps that are factors of p do not matter."""
    p = p if integer else without_exps(p)[0]
    value = p.constant
    if value is not None:
        return ONE if (value >= 0 if relation == "ge" else value == 0) else ZERO
    leading = Fraction(p.terms[max(m for m in p.terms if m)])
    if integer and all(c == int(c) for c in p.terms.values()):
        divisor = gcd(*(int(c) for m, c in p.terms.items() if m))
        rest = int(p.terms.get((), 0))
        if relation == "eq" and rest % divisor:
            return ZERO
        p = of_terms({**{m: int(c) // divisor for m, c in p.terms.items()}, (): rest // divisor})
        if leading < 0 and relation == "ge":
            return ONE - of_atom(Indicator("ge", -p - 1, True))
        return of_atom(Indicator(relation, -p if leading < 0 else p, True))
    scale = abs(leading) if relation == "ge" else leading
    return of_atom(Indicator(relation, p * (Fraction(1) / scale), integer))


def nonnegative(p: Form) -> Form:
    """Return [p >= 0] of an integer."""
    return indicator("ge", p, integer=True)


def zero(p: Form) -> Form:
    """Return [p = 0] of an integer."""
    return indicator("eq", p, integer=True)


def maximum(entries: Iterable[Form]) -> Form:
    """Return the largest of the entries; if all are under conditions, at least one of these must hold."""
    flat: set[Form] = set()
    for entry in entries:
        inner = single(entry)
        flat |= inner.entries if isinstance(inner, Max) else {entry}
    numbers = {v: v.constant for v in flat if v.constant is not None}
    largest = {form(max(numbers.values()))} if numbers else set()
    flat = {v for v in flat if v not in numbers and conditional(v)[0] is not ZERO} | largest
    return conditional(*flat)[1] if len(flat) == 1 else of_atom(Max(frozenset(flat)))


Rule = Callable[[Form, Callable[[Form], Form]], Form | None]
"""From the extent and the body of a sum what the sum is, or None."""
_rules = Setting[tuple[Rule, ...]](())


def ruled(*rules: Rule) -> AbstractContextManager[tuple[Rule, ...]]:
    """Let a sum be, inside, what the first rule says of it that says anything; drop other rules."""
    return _rules.set_to(rules)


def summation(extent: Form | Rational, body: Callable[[Form], Form]) -> Form:
    """Return Sum_{k < extent} body(k); the extent is natural."""
    extent = form(extent)
    if (other := _other_sum(extent, body)) is not None:
        return other
    index = fresh("k")
    return _distributed(extent, body(index), number(index), split=summing.splits())


def _other_sum(extent: Form, body: Callable[[Form], Form]) -> Form | None:
    """Return a sum that a rule or its extent makes something else, or None."""
    for rule in _rules.value:
        with ruled():
            known = rule(extent, body)
        if known is not None:
            return known
    if tiling := summing.tiling(extent):
        return _tiled_sum(extent, *tiling, body)
    size = extent.constant
    if size is not None and size <= summing.longest(LONGEST_SUM):
        return total(body(form(k)) for k in range(int(size)))
    shorter = extent - 1
    longer = size is None and extent.terms.get((), 0) >= 1 and is_natural(shorter)
    return summation(shorter, body) + body(shorter) if longer else None


def _beneath(big: Big, change: Change) -> tuple[Form, int]:
    """Return the changed body of a sum or maximum and its variable, by number, which is left as it is or a fresh one.

    It is left where nothing is captured: what is substituted does not hold it, and in the changed body each sum or maximum
    has a lower level, and each free variable this or a higher one; and where no terms of a sum are joined by a fresh one.
    """
    if isinstance(change, ring.Substitution) and big.level not in change.levels:
        body = change(big.body)
        alike = big.operator == "max" or summing.splits() or len(big.body.terms) == 1 >= len(body.terms)
        if alike and ring.height(body) < big.level <= min(ring.levels(body), default=big.level):
            return body, number_of(Bound(big.level))
    index = fresh("k")
    return change(opened(big, index)), number(index)


def _distributed(extent: Form, body: Form, number: int, *, split: bool) -> Form:
    """Return the sum of a body over a variable: one for each term, without the factors that do not depend on it."""
    summands = []
    for monomial, coefficient in body.terms.items():
        inner = tuple((a, e) for a, e in monomial if number in support_of(a))
        outer = monomial_form(tuple(p for p in monomial if p not in inner), coefficient)
        summands.append(outer * (_sum(extent, monomial_form(inner), number, split) if inner else extent))
    return total(summands)


def _sum(extent: Form, body: Form, number: int, split: bool) -> Form:
    """Return the sum of a body of one term."""
    level, closed = _closed(body, number)
    bound = number_of(Bound(level))
    again = split and number != bound
    return _distributed(extent, closed, bound, split=True) if again else of_atom(Big("sum", level, extent, closed))


def _closed(body: Form, number: int) -> tuple[int, Form]:
    """Return the body of a sum or maximum with its variable, by number, bound; and the level."""
    level = 1 + ring.height(body)
    bound = Bound(level)
    return level, body if number_of(bound) == number else substitute(body, {number: of_atom(bound)})


def _tiled_sum(extent: Form, block: int, strided: bool, body: Callable[[Form], Form]) -> Form:
    if block < 1:
        raise ValueError(f"expected tiles of at least 1 element, got {block}")
    whole = all(c % block == 0 for c in extent.terms.values())
    blocks = extent * Fraction(1, block) if whole else floordiv(extent + block - 1, block)

    def element(t: Form, b: Form) -> Form:
        k = t * block + b
        inside = ONE if blocks * block is extent else nonnegative(extent - 1 - k)
        return inside * body(k)

    if strided:
        return summation(block, lambda b: summation(blocks, lambda t: element(t, b)))
    return summation(blocks, lambda t: summation(block, lambda b: element(t, b)))


def big_maximum(extent: Form | Rational, body: Callable[[Form], Form], longest: int = LONGEST_MAX) -> Form:
    """Return Max_{k < extent} body(k), written out up to an extent; at least one of the values must count."""
    extent = form(extent)
    size = extent.constant
    if size is not None and 1 <= size <= longest:
        return maximum(body(form(k)) for k in range(int(size)))
    index = fresh("k")
    return _maximum_over(extent, body(index), number(index))


def _maximum_over(extent: Form, body: Form, number: int) -> Form:
    level, closed = _closed(body, number)
    return of_atom(Big("max", level, extent, closed))


def is_natural(p: Form) -> bool:
    """Return whether p is a polynomial in natural variables, those of sums included, with natural coefficients."""
    atoms = [atom_of(a) for m in p.terms for a, _ in m]
    natural = all(isinstance(a, Bound) or (isinstance(a, Variable) and a.kind == "natural") for a in atoms)
    return natural and all(c >= 0 and c == int(c) for c in p.terms.values())


def has_bound(number: int) -> bool:
    """Return whether an atom is inside a sum or maximum, or holds one."""
    return any(isinstance(atom_of(a), Bound) for a in support_of(number))


def is_closed_condition(number: int) -> bool:
    """Return whether an atom is a condition that depends on the variable of no sum or maximum around it."""
    return isinstance(atom_of(number), Indicator) and not free_levels(number)


def opened(big: Big, index: Form) -> Form:
    """Return the body of a sum or maximum at an index."""
    return substitute(big.body, {number_of(Bound(big.level)): index})


def rewriting(wanted: Callable[[Atom], bool], value: Callable[[Any], Form | None]) -> Rewriting:
    """Return the rewriting that puts ``value(atom)`` for each atom that is wanted, if there is a value."""
    return Rewriting(lambda n: value(atom_of(n)), lambda numbers: {n for n in numbers if wanted(atom_of(n))})


def replacing(function: str, value: Callable[..., Form]) -> Rewriting:
    """Return the rewriting that puts ``value(i...)`` for ``function(i...)``, for all indices."""
    wanted = lambda a: isinstance(a, Apply) and a.function == function  # noqa: E731  one expression, named for the next line
    result: Rewriting = rewriting(wanted, lambda a: value(*map(result, a.arguments)))
    return result
