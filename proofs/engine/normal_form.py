"""The normal form of a real expression: a polynomial, with negative exponents, over opaque atoms.

Every expression of the symbolic reading is a ``Form``. Forms are hash-consed: the same form is the same object. Two forms
that are not the same object may still denote the same function; ``equality.equal`` decides that for rational functions of
the atoms. Building a form rewrites it by these laws, and no others:

    ring laws over the rationals                        x^a x^b = x^(a+b)
    exp(a + b) = exp(a) exp(b), exp(log x) = x          1/(c m p) = (1/c) m^-1 p^-1, m the common monomial of the terms
    [c]² = [c], [c] g([c]) = [c] g(1)                   [p < 0] = 1 - [p >= 0]
    sums are linear; constants leave them               Sum_{k < n+1} f = Sum_{k < n} f + f(n), n natural
    max is associative, commutative and idempotent      a sum or maximum over few elements is written out

The laws 1/x * x = 1 and exp(log x) = x hold where x is not 0, or positive: the range layer proves that of every
denominator and logarithm of a kernel.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial, reduce
from math import gcd
from typing import Literal

from .constants import CONSTANTS
from .errors import Unsupported

LONGEST_SUM, LONGEST_MAX = 16, 64
"""The largest constant extents for which a sum, or a maximum, is written out."""

Rational = int | Fraction
Monomial = tuple[tuple[int, Rational], ...]
"""(atom, exponent) pairs by rising atom number; exponents are integers but for ``Exp``."""


class Undefined(Unsupported):
    """A term without a value, such as 1/0."""


class Form:
    """A sum of monomials with rational coefficients. Compare by identity, or with ``equality.equal``."""

    __slots__ = ("_height", "_support", "id", "terms")

    terms: dict[Monomial, Rational]
    id: int
    _support: frozenset[int] | None
    _height: int | None

    def __add__(self, other: Form | Rational) -> Form:
        terms = dict(self.terms)
        for monomial, coefficient in form(other).terms.items():
            terms[monomial] = terms.get(monomial, 0) + coefficient
        return _intern(terms)

    def __mul__(self, other: Form | Rational) -> Form:
        terms: dict[Monomial, Rational] = {}
        for a, x in self.terms.items():
            for b, y in form(other).terms.items():
                monomial = _product(a, b)
                terms[monomial] = terms.get(monomial, 0) + x * y
        return _intern(terms) if not self._conditional() and not form(other)._conditional() else _absorb(terms)

    def __pow__(self, exponent: int) -> Form:
        base = self if exponent >= 0 else reciprocal(self)
        return reduce(Form.__mul__, itertools.repeat(base, abs(exponent)), ONE)

    def __neg__(self) -> Form:
        return _intern({m: -c for m, c in self.terms.items()})

    def __sub__(self, other: Form | Rational) -> Form:
        return self + -form(other)

    def __rsub__(self, other: Rational) -> Form:
        return form(other) - self

    def __truediv__(self, other: Form | Rational) -> Form:
        return self * reciprocal(form(other))

    def __rtruediv__(self, other: Rational) -> Form:
        return form(other) * reciprocal(self)

    __radd__ = __add__
    __rmul__ = __mul__

    def __repr__(self) -> str:
        from .pretty import pretty

        return pretty(self)

    @property
    def constant(self) -> Rational | None:
        """The number that this form is, or None."""
        if not self.terms:
            return 0
        return self.terms.get(()) if len(self.terms) == 1 else None

    def _conditional(self) -> bool:
        return any(isinstance(_ATOMS[a], Indicator) for m in self.terms for a, _ in m)


@dataclass(frozen=True, slots=True)
class Variable:
    """A number by name. A natural one is an integer and not negative: a size, a loop variable, a thread."""

    name: str
    kind: Literal["natural", "integer", "real"] = "natural"


@dataclass(frozen=True, slots=True)
class Bound:
    """The variable of the sum or maximum of that level."""

    level: int


@dataclass(frozen=True, slots=True)
class Read:
    """An element of an input."""

    buffer: str
    index: tuple[Form, ...]


@dataclass(frozen=True, slots=True)
class Apply:
    """An uninterpreted function."""

    function: str
    arguments: tuple[Form, ...]


@dataclass(frozen=True, slots=True)
class Exp:
    """exp of one monomial; its exponent is the coefficient."""

    argument: Form


@dataclass(frozen=True, slots=True)
class Polynomial:
    """A polynomial of several terms, without common monomial and with leading coefficient 1, under a reciprocal."""

    form: Form


@dataclass(frozen=True, slots=True)
class Big:
    """Sum or maximum of the body over ``Bound(level)`` from 0 to the extent, which is excluded."""

    operator: Literal["sum", "max"]
    level: int
    extent: Form
    body: Form


@dataclass(frozen=True, slots=True)
class Max:
    """The largest of the values whose condition holds; at least one must."""

    entries: frozenset[tuple[Form, Form]]


@dataclass(frozen=True, slots=True)
class Indicator:
    """1 if the form is at least 0 ("ge"), or is 0 ("eq"), else 0."""

    relation: Literal["ge", "eq"]
    form: Form
    integer: bool


Atom = Variable | Bound | Read | Apply | Exp | Polynomial | Big | Max | Indicator

_ATOMS: list[Atom] = []
_NUMBER: dict[Atom, int] = {}
_FORMS: dict[frozenset[tuple[Monomial, Rational]], Form] = {}


def atom_of(number: int) -> Atom:
    """The atom with that number."""
    return _ATOMS[number]


def number_of(atom: Atom) -> int:
    """The number of an atom; equal atoms have the same."""
    if atom not in _NUMBER:
        _NUMBER[atom] = len(_ATOMS)
        _ATOMS.append(atom)
    return _NUMBER[atom]


def of_atom(atom: Atom, exponent: Rational = 1) -> Form:
    """The form of one atom to a power."""
    return _intern({((number_of(atom), exponent),): 1})


def monomial_form(monomial: Monomial, coefficient: Rational = 1) -> Form:
    """The form of one term."""
    return _intern({monomial: coefficient})


def of_terms(terms: dict[Monomial, Rational]) -> Form:
    """The form of a sum of terms, no two of which have the same monomial."""
    return _intern(terms)


def _intern(terms: dict[Monomial, Rational]) -> Form:
    terms = {m: c for m, c in terms.items() if c != 0}
    key = frozenset(terms.items())
    found = _FORMS.get(key)
    if found is None:
        found = Form()
        found.terms, found.id, found._support, found._height = terms, len(_FORMS), None, None
        _FORMS[key] = found
    return found


ZERO, ONE = _intern({}), _intern({(): 1})


def form(value: Form | Rational) -> Form:
    """A number as a form."""
    return value if isinstance(value, Form) else _intern({(): value})


def variable(name: str, kind: Literal["natural", "integer", "real"] = "natural") -> Form:
    """The form of a variable."""
    return of_atom(Variable(name, kind))


_serial = itertools.count()


def fresh(name: str) -> Form:
    """A natural variable unlike any other."""
    return variable(f"{name}~{next(_serial)}")


def read(buffer: str, *index: Form | Rational) -> Form:
    """An element of an input."""
    return of_atom(Read(buffer, tuple(form(i) for i in index)))


def apply(function: str, *arguments: Form | Rational) -> Form:
    """An uninterpreted function of its arguments."""
    return of_atom(Apply(function, tuple(form(a) for a in arguments)))


def _product(a: Monomial, b: Monomial) -> Monomial:
    if not a or not b:
        return a or b
    exponents = dict(a)
    for atom, exponent in b:
        exponents[atom] = exponents.get(atom, 0) + exponent
    return tuple(sorted((x, 1 if isinstance(_ATOMS[x], Indicator) else e) for x, e in exponents.items() if e != 0))


def _absorb(terms: dict[Monomial, Rational]) -> Form:
    """[c] g([c]) = [c] g(1)."""
    result = ZERO
    for monomial, coefficient in terms.items():
        known = {a: ONE for a, _ in monomial if isinstance(_ATOMS[a], Indicator)}
        inside = [(a, e) for a, e in monomial if a not in known and not support_of(a).isdisjoint(known)]
        term = _intern({tuple(p for p in monomial if p not in inside): coefficient})
        for atom, exponent in inside:
            term = term * _rebuild(atom, exponent, partial(substitute, values=known))
        result = result + term
    return result


def power(base: Form, exponent: Rational) -> Form:
    """``base ** exponent``; the exponent of anything but one exp must be an integer."""
    if exponent == int(exponent):
        return base ** int(exponent)
    if len(base.terms) == 1:
        ((monomial, coefficient),) = base.terms.items()
        if coefficient == 1 and all(isinstance(_ATOMS[a], Exp) for a, _ in monomial):
            return _intern({tuple((a, e * exponent) for a, e in monomial): 1})
    raise ValueError(f"({base}) to the power {exponent}")


def common_monomial(p: Form) -> Monomial:
    """The atoms that every term has, at their least exponent; an atom that a term lacks has exponent 0 there."""
    terms = [dict(m) for m in p.terms]
    atoms = sorted({a for term in terms for a in term if not isinstance(_ATOMS[a], Indicator)})
    least = ((a, min(term.get(a, 0) for term in terms)) for a in atoms)
    return tuple((a, e) for a, e in least if e != 0)


def reciprocal(p: Form) -> Form:
    """1/p, as 1/(c m q) = (1/c) m^-1 q^-1."""
    result = _inverse(p)
    ((monomial, coefficient),) = result.terms.items()
    polynomials = [(a, e) for a, e in monomial if isinstance(_ATOMS[a], Polynomial)]
    if len(polynomials) == 1 and polynomials[0][1] == 1:  # 1/(1/q) = q
        others = tuple(p for p in monomial if p not in polynomials)
        return _intern({others: coefficient}) * children(_ATOMS[polynomials[0][0]])[0]
    return result


def _inverse(p: Form) -> Form:
    """1/p as one monomial; a polynomial of several terms in it stays an atom."""
    if not p.terms:
        raise Undefined("the reciprocal of 0")
    inverse = tuple((a, -e) for a, e in common_monomial(p))
    rest = _intern({_product(m, inverse): c for m, c in p.terms.items()})
    if rest.constant is not None:
        return _intern({inverse: Fraction(1) / rest.constant})
    leading = rest.terms[max(rest.terms)]
    monic = _intern({m: Fraction(c) / leading for m, c in rest.terms.items()})
    last = ((number_of(Polynomial(monic)), -1),)
    return _intern({_product(inverse, last): Fraction(1) / leading})


def _monomial_power(p: Form, exponent: Rational) -> Form:
    """A power of a form of one term, by an integer."""
    ((monomial, coefficient),) = p.terms.items()
    return _intern({tuple((a, e * exponent) for a, e in monomial): Fraction(coefficient) ** int(exponent)})


def exp(p: Form) -> Form:
    """exp(p), one factor per monomial; the coefficients are unified constants."""
    result = ONE
    for monomial, coefficient in p.terms.items():
        rate = CONSTANTS.unify(Fraction(coefficient))
        inner = _ATOMS[monomial[0][0]] if len(monomial) == 1 and monomial[0][1] == 1 else None
        if isinstance(inner, Apply) and inner.function == "log" and rate.denominator == 1:
            result = result * inner.arguments[0] ** int(rate)
        else:
            exponent = int(rate) if rate.denominator == 1 else rate
            result = result * of_atom(Exp(_intern({monomial: 1})), exponent)
    return result


def log(p: Form) -> Form:
    """log(p), opaque but for the logarithm of an exp."""
    if len(p.terms) == 1:
        ((monomial, coefficient),) = p.terms.items()
        if coefficient == 1:
            atoms = [(_ATOMS[a], e) for a, e in monomial]
            if all(isinstance(a, Exp) for a, _ in atoms):
                return reduce(Form.__add__, (a.argument * e for a, e in atoms if isinstance(a, Exp)), ZERO)
    return apply("log", p)


def indicator(relation: Literal["ge", "eq"], p: Form, *, integer: bool) -> Form:
    """[p >= 0] or [p = 0], of an integer or of a real number."""
    value = p.constant
    if value is not None:
        return ONE if (value >= 0 if relation == "ge" else value == 0) else ZERO
    leading = Fraction(p.terms[max(m for m in p.terms if m)])
    if integer and all(c == int(c) for c in p.terms.values()):
        divisor = gcd(*(int(c) for m, c in p.terms.items() if m))
        rest = int(p.terms.get((), 0))
        if relation == "eq" and rest % divisor:
            return ZERO
        p = _intern({**{m: int(c) // divisor for m, c in p.terms.items()}, (): rest // divisor})
        if leading < 0 and relation == "ge":
            return ONE - of_atom(Indicator("ge", -p - 1, True))
        return of_atom(Indicator(relation, -p if leading < 0 else p, True))
    scale = abs(leading) if relation == "ge" else leading
    return of_atom(Indicator(relation, p * (Fraction(1) / scale), integer))


def maximum(entries: Iterable[tuple[Form, Form]]) -> Form:
    """The largest of the values whose condition, a form that is 0 or 1, holds."""
    flat: set[tuple[Form, Form]] = set()
    for condition, value in entries:
        ((monomial, coefficient),) = value.terms.items() if len(value.terms) == 1 else (((), 0),)
        inner = _ATOMS[monomial[0][0]] if len(monomial) == 1 and monomial[0][1] == coefficient == 1 else None
        if condition is ONE and isinstance(inner, Max):
            flat |= inner.entries
        elif condition is not ZERO:
            flat.add((condition, value))
    numbers = [v.constant for c, v in flat if c is ONE and v.constant is not None]
    if numbers:
        flat = {e for e in flat if e[1].constant is None or e[0] is not ONE} | {(ONE, form(max(numbers)))}
    if len(flat) == 1:
        return next(iter(flat))[1]
    return of_atom(Max(frozenset(flat)))


_tilings: dict[Form, tuple[Form, Form]] = {}


@contextmanager
def tiled(extent: Form | Rational, block: int) -> Iterator[None]:
    """Inside, a sum over ``extent`` elements is built as one over blocks of one over the elements of a block.

    Sum_{k < n} f(k) = Sum_{t < ⌈n/block⌉} Sum_{b < block} [t block + b < n] f(t block + b), where the condition is left
    out if the block divides every coefficient of n.
    """
    extent = form(extent)
    before = dict(_tilings)
    whole = all(c % block == 0 for c in extent.terms.values())
    blocks = extent * Fraction(1, block) if whole else apply("floordiv", extent + block - 1, block)
    _tilings[extent] = blocks, form(block)
    try:
        yield
    finally:
        _tilings.clear()
        _tilings.update(before)


def summation(extent: Form | Rational, body: Callable[[Form], Form]) -> Form:
    """Sum_{k < extent} body(k); the extent is natural."""
    extent = form(extent)
    if extent in _tilings:
        return _tiled_sum(extent, *_tilings[extent], body)
    size = extent.constant
    if size is not None and size <= LONGEST_SUM:
        return reduce(Form.__add__, (body(form(k)) for k in range(int(size))), ZERO)
    shorter = extent - 1
    if size is None and extent.terms.get((), 0) >= 1 and is_natural(shorter):
        return summation(shorter, body) + body(shorter)
    index = fresh("k")
    (((number, _),),) = index.terms
    result = ZERO
    for monomial, coefficient in body(index).terms.items():
        inner = tuple((a, e) for a, e in monomial if number in support_of(a))
        outer = _intern({tuple(p for p in monomial if p not in inner): coefficient})
        result = result + outer * (_close("sum", extent, _intern({inner: 1}), number) if inner else extent)
    return result


def _tiled_sum(extent: Form, blocks: Form, block: Form, body: Callable[[Form], Form]) -> Form:
    def element(t: Form, b: Form) -> Form:
        k = t * block + b
        inside = ONE if blocks * block is extent else indicator("ge", extent - 1 - k, integer=True)
        return inside * body(k)

    return summation(blocks, lambda t: summation(block, lambda b: element(t, b)))


def big_maximum(extent: Form | Rational, body: Callable[[Form], Form]) -> Form:
    """Max_{k < extent} body(k); the extent is at least 1."""
    extent = form(extent)
    size = extent.constant
    if size is not None and 1 <= size <= LONGEST_MAX:
        return maximum((ONE, body(form(k))) for k in range(int(size)))
    index = fresh("k")
    (((number, _),),) = index.terms
    return _close("max", extent, body(index), number)


def is_natural(p: Form) -> bool:
    """Whether p is a polynomial in natural variables with natural coefficients."""
    return all(
        c >= 0 and c == int(c) and all(isinstance(v := _ATOMS[a], Variable) and v.kind == "natural" for a, _ in m)
        for m, c in p.terms.items()
    )


def _close(operator: Literal["sum", "max"], extent: Form, body: Form, number: int) -> Form:
    level = 1 + height(body)
    return of_atom(Big(operator, level, extent, substitute(body, {number: of_atom(Bound(level))})))


def opened(big: Big, index: Form) -> Form:
    """The body of a sum or maximum at an index."""
    return substitute(big.body, {number_of(Bound(big.level)): index})


def height(p: Form) -> int:
    """The largest level of a sum or maximum inside."""
    if p._height is None:
        levels = (a.level for a in map(atom_of, support(p)) if isinstance(a, Big))
        p._height = max(levels, default=0)
    return p._height


def children(atom: Atom) -> tuple[Form, ...]:
    """The forms inside an atom."""
    match atom:
        case Read(_, forms) | Apply(_, forms):
            return forms
        case Exp(inner) | Polynomial(inner) | Indicator(_, inner, _):
            return (inner,)
        case Big(_, _, extent, body):
            return extent, body
        case Max(entries):
            return tuple(f for entry in entries for f in entry)
    return ()


def support(p: Form) -> frozenset[int]:
    """The numbers of all atoms of a form, at any depth."""
    if p._support is None:
        p._support = frozenset().union(*(support_of(a) for m in p.terms for a, _ in m))
    return p._support


_support_of: dict[int, frozenset[int]] = {}


def support_of(number: int) -> frozenset[int]:
    """The number of an atom, and those of all atoms inside it."""
    if number not in _support_of:
        _support_of[number] = frozenset({number}).union(*(support(f) for f in children(_ATOMS[number])))
    return _support_of[number]


class Rewriting:
    """A function on forms that replaces some atoms, and rebuilds those around them. What it has done once it remembers.

    Args:
        replacement: the value of an atom, by its number, or None. It is not rewritten again.
        targets: of the atoms of a form, those to be replaced.
    """

    def __init__(
        self,
        replacement: Callable[[int], Form | None],
        targets: Callable[[frozenset[int]], set[int] | frozenset[int]],
    ) -> None:
        self._replacement, self._find = replacement, targets
        self._memo: dict[Form, Form] = {}
        self._targets: set[int] = set()

    def __call__(self, p: Form) -> Form:
        """The rewritten form."""
        self._targets |= self._find(support(p))
        return self._visit(p)

    def _visit(self, p: Form) -> Form:
        if support(p).isdisjoint(self._targets):
            return p
        if p not in self._memo:
            self._memo[p] = self._walk(p)
        return self._memo[p]

    def _walk(self, p: Form) -> Form:
        kept: dict[Monomial, Rational] = {}
        result = ZERO
        for monomial, coefficient in p.terms.items():
            changed = [(a, e) for a, e in monomial if not support_of(a).isdisjoint(self._targets)]
            if not changed:
                kept[monomial] = coefficient
                continue
            term = _intern({tuple(p for p in monomial if p not in changed): coefficient})
            for atom, exponent in changed:
                value = self._replacement(atom) if atom in self._targets else None
                # the body of a sum is rewritten at a fresh index: its atoms are new, and may be targets
                change = self if isinstance(_ATOMS[atom], Big) else self._visit
                term = term * (_rebuild(atom, exponent, change) if value is None else power(value, exponent))
            result = result + term
        return result + _intern(kept)


def substitute(p: Form, values: Mapping[int, Form]) -> Form:
    """The form with atoms, by number, replaced. A value must not hold a bound variable that ``p`` binds."""
    if support(p).isdisjoint(values):
        return p
    return Rewriting(values.get, lambda numbers: numbers & values.keys())(p)


def replacing(function: str, value: Callable[..., Form]) -> Rewriting:
    """The rewriting that puts ``value(i...)`` for ``function(i...)``, for all indices."""

    def replacement(number: int) -> Form | None:
        atom = _ATOMS[number]
        assert isinstance(atom, Apply)
        return value(*map(rewriting, atom.arguments))

    def targets(numbers: frozenset[int]) -> set[int]:
        return {n for n in numbers if isinstance(a := _ATOMS[n], Apply) and a.function == function}

    rewriting = Rewriting(replacement, targets)
    return rewriting


def replace(p: Form, function: str, value: Callable[..., Form]) -> Form:
    """The form with ``function(i...)`` replaced by ``value(i...)``, for all indices."""
    return replacing(function, value)(p)


def functions(p: Form) -> set[str]:
    """The names of the uninterpreted functions in a form."""
    return {a.function for a in map(atom_of, support(p)) if isinstance(a, Apply)}


def _rebuild(number: int, exponent: Rational, change: Callable[[Form], Form]) -> Form:
    """A power of an atom with its parts changed."""
    atom = _ATOMS[number]
    if isinstance(atom, Exp):
        return exp(change(atom.argument) * exponent)
    if isinstance(atom, Polynomial):  # stays a factor: expanded, products of them would explode
        return _monomial_power(_inverse(change(atom.form)), -exponent)
    return power(_rebuild_atom(atom, change), exponent)


def _rebuild_atom(atom: Atom, change: Callable[[Form], Form]) -> Form:
    """An atom with its parts changed, through the constructor that applies the laws."""
    match atom:
        case Read(buffer, index):
            return read(buffer, *map(change, index))
        case Apply("log", (argument,)):
            return log(change(argument))
        case Apply(function, arguments):
            return apply(function, *map(change, arguments))
        case Indicator(relation, inner, integer):
            return indicator(relation, change(inner), integer=integer)
        case Max(entries):
            return maximum((change(c), change(v)) for c, v in entries)
        case Big("sum", _, extent, _):
            return summation(change(extent), lambda k: change(opened(atom, k)))
        case Big("max", _, extent, _):
            return big_maximum(change(extent), lambda k: change(opened(atom, k)))
    return of_atom(atom)
