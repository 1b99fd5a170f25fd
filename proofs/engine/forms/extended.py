"""Values of the symbolic reading: real numbers, and infinities of one sign under a condition.

A value is its form where its condition ``finite`` holds, and elsewhere an infinity of its sign. What could be NaN, such
as -inf - -inf, or -inf times a factor of unknown sign, is rejected. The sign of a form is read off its atoms: exp is positive,
a sum of terms of one sign has that sign.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from ..base.errors import Unsupported
from . import normal_form as nf
from .constants import unified
from .normal_form import ONE, ZERO, Form
from .ring import Atom, Monomial, Polynomial, Rational, reciprocal

Sign = Literal["positive", "nonnegative"] | None


class Signs:
    """What is known of the sign of forms, given which uninterpreted functions are positive."""

    def __init__(self, positive: frozenset[str]) -> None:
        self._positive = positive
        self._sign: Callable[[int], Sign] = cache(lambda number: self._atom(nf.atom_of(number)))

    def form(self, p: Form) -> Sign:
        """Return the sign of a sum, if all its terms have the same."""
        signs = {self.monomial(m) if c > 0 else None for m, c in p.terms.items()}
        return None if None in signs else "positive" if "positive" in signs else "nonnegative"

    def monomial(self, monomial: Monomial) -> Sign:
        """Return the sign of a product."""
        signs = {self._power(atom, exponent) for atom, exponent in monomial}
        return None if None in signs else "nonnegative" if "nonnegative" in signs else "positive"

    def _power(self, atom: int, exponent: Rational) -> Sign:
        sign = self._sign(atom)
        if sign is None and exponent % 2 == 0 and exponent > 0:
            return "nonnegative"
        return sign if exponent > 0 or sign == "positive" else None

    def _atom(self, atom: Atom) -> Sign:
        match atom:
            case nf.Exp():
                return "positive"
            case Polynomial(inner):
                return self.form(inner)
            case nf.Apply(function, _) if function in self._positive:
                return "positive"
            case nf.Apply("sqrt", (inner,)):
                return self.form(inner)
            case nf.Indicator() | nf.Variable(_, "natural"):
                return "nonnegative"
            case nf.Big("sum", _, extent, body):
                sign = self.form(body)
                return sign if (extent.constant or 0) >= 1 or sign is None else "nonnegative"
            case nf.Max(entries):
                signs = set(map(self.form, entries))
                return "positive" if "positive" in signs else "nonnegative" if "nonnegative" in signs else None
        return None


class Indefinite(Unsupported):
    """Raised where an operation may give NaN, or an infinity that the values do not model."""

    kind = "not a number"


@dataclass(frozen=True, slots=True)
class Value:
    """A number or truth value. A truth value is 0 or 1.

    ``computed`` is its sign where it is finite, if that follows from how it is computed, in floats too: a square is not
    negative, nor is a sum of squares. The form may hide it: it is multiplied out.
    """

    form: Form  # the value where it is finite; 0 elsewhere
    finite: Form = ONE  # where it is finite, as a form that is 0 or 1
    sign: int = -1  # which infinity it is where it is not: 1 or -1
    computed: Sign = None

    @property
    def real(self) -> Form:
        """The form of a value that is finite everywhere."""
        if self.finite is not ONE:
            raise Indefinite(f"{self.form} may be {'-' if self.sign < 0 else ''}inf here")
        return self.form


class Raw(Value):
    """An element of an input that may be any float, NaN too. It is no real number: only its bits can be asked for."""

    __slots__ = ("element",)
    element: Form

    def __init__(self, element: Form) -> None:
        object.__setattr__(self, "element", element)

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def _number(self) -> Form:
        raise Indefinite(f"{self.element} may be NaN; only its bits are modelled")

    form = finite = property(_number)


def computed(*values: Value) -> list[Sign]:
    """Return the signs that values have by how they are computed, or as constants."""
    constants = ((a, a.form.constant) for a in values)
    return [
        a.computed if c is None else "positive" if c > 0 else None if c < 0 else "nonnegative" for a, c in constants
    ]


INFINITY = Value(ZERO, ZERO, 1)


def _common_sign(a: Value, b: Value) -> int:
    if a.finite is not ONE and b.finite is not ONE and a.sign != b.sign:
        raise Indefinite("inf meets -inf")
    return a.sign if a.finite is not ONE else b.sign


def negative(a: Value) -> Value:
    """Return -a."""
    return Value(-a.form, a.finite, -a.sign)


def add(a: Value, b: Value) -> Value:
    """Return a + b."""
    finite, signs = a.finite * b.finite, computed(a, b)
    sign: Sign = None if None in signs else "positive" if "positive" in signs else "nonnegative"
    return Value(finite * (a.form + b.form), finite, _common_sign(a, b), sign)


def multiply(a: Value, b: Value) -> Value:
    """Return a b; an infinity may only be multiplied by a constant other than 0."""
    if a.finite is ONE and b.finite is ONE:
        # One value, and not two that are equal over the reals: those may be rounded differently.
        square = a is b or None not in computed(a, b)
        return Value(a.form * b.form, computed="nonnegative" if square else None)
    infinite, factor = (a, b) if a.finite is not ONE else (b, a)
    constant = factor.form.constant
    if factor.finite is not ONE or not constant:
        raise Indefinite(f"an infinity times {factor.form}, whose sign is not known")
    return Value(infinite.form * constant, infinite.finite, infinite.sign if constant > 0 else -infinite.sign)


def divide(a: Value, b: Value) -> Value:
    """Return a / b. Unless b is 0 identically, it is left to the range layer that b is not 0."""
    if b.real is ZERO:
        raise Indefinite(f"{a.form} divided by 0")
    return multiply(a, Value(reciprocal(b.form)))


def exp(a: Value) -> Value:
    """Return exp(a), where exp(-inf) = 0."""
    if a.finite is not ONE and a.sign > 0:
        raise Indefinite("exp(inf)")
    return Value(a.finite * nf.exp(under(a.finite, a.form)))


def maximum(a: Value, b: Value) -> Value:
    """Return max(a, b), where max(-inf, b) = b."""
    finite = ONE - (ONE - a.finite) * (ONE - b.finite)
    return Value(finite * nf.maximum(map(_where_finite, (a, b))), finite)


FUNCTIONS: Mapping[str, Callable[[Value, str], Value]] = {
    "exp": lambda a, dtype: exp(Value(unified(a.form, dtype), a.finite, a.sign)),
    "log": lambda a, _: Value(nf.log(a.real)),
    "sqrt": lambda a, _: Value(nf.apply("sqrt", a.real), computed=computed(a)[0]),
    "rsqrt": lambda a, _: Value(1 / nf.apply("sqrt", a.real), computed="positive"),
    "rcp": lambda a, _: divide(Value(ONE), a),
    "abs": lambda a, _: maximum(Value(a.real), Value(-a.real)),
    # 1 / (1 + exp(-x)), whose exp may overflow: 1 / inf is 0
    "sigmoid": lambda a, dtype: divide(Value(ONE), add(Value(ONE), FUNCTIONS["exp"](negative(a), dtype))),
}
"""Functions of a number of some type, whose constants are unified (``constants``)."""


def largest(*parts: tuple[Form, Callable[[Form], Value]]) -> Value:
    """Return the maximum of values, some of which may be -inf; it is finite where at least one of them is.

    Each part has an extent and a function from an index below that to an element.
    """

    def entry(extent: Form, element: Callable[[Form], Value]) -> tuple[Form, Form]:
        count = nf.summation(extent, lambda k: element(k).finite)
        return count, nf.big_maximum(extent, lambda k: _where_finite(element(k)), longest=0)

    found = [entry(*part) for part in parts]
    some = nf.nonnegative(sum((count for count, _ in found), ZERO) - 1)
    return Value(some * nf.maximum(nf.where(nf.nonnegative(count - 1), v) for count, v in found), some)


def _where_finite(a: Value) -> Form:
    """Return a value as an entry of a maximum."""
    if a.finite is not ONE and a.sign > 0:
        raise Indefinite("the maximum with inf")
    return nf.where(a.finite, under(a.finite, a.form))


def under(condition: Form, p: Form) -> Form:
    """Return a form that is the same where the condition, made of conditions, holds: each that it implies is 1, or 0."""
    atoms = {number for monomial in condition.terms for number, _ in monomial}
    for number in (n for n in atoms if isinstance(nf.atom_of(n), nf.Indicator)):
        values = [v for v in (ZERO, ONE) if nf.substitute(condition, {number: v}) is not ZERO]
        p = nf.substitute(p, {number: values[0]}) if len(values) == 1 else p
    return p


def select(condition: Form, then: Value, otherwise: Value) -> Value:
    """Return ``then`` where the condition holds, else ``otherwise``."""
    if condition is ONE or then == otherwise:
        return then
    if condition is ZERO:
        return otherwise
    signs, other = computed(then, otherwise), ONE - condition
    kept: Sign = None if None in signs else "nonnegative" if "nonnegative" in signs else "positive"
    then = Value(under(condition, then.form), under(condition, then.finite), then.sign)
    finite = condition * then.finite + other * otherwise.finite
    return Value(condition * then.form + other * otherwise.form, finite, _common_sign(then, otherwise), kept)


def bits(a: Value) -> Value:
    """Return the bits as fp32, an opaque integer. Those of a real number are not modelled: rounding decides them."""
    if not isinstance(a, Raw):
        raise Unsupported(f"the bits of {a.form}, which is not an element of a raw input")
    return Value(nf.apply("bits", a.element))


def at_least(a: Value, b: Value, *, integer: bool) -> Form:
    """Return [a >= b]."""
    if a.finite is ONE and b.finite is ONE:
        return nf.indicator("ge", a.form - b.form, integer=integer)
    if _common_sign(a, b) > 0:
        return at_least(negative(b), negative(a), integer=integer)
    both = a.finite * b.finite
    return ONE - b.finite + both * nf.indicator("ge", a.form - b.form, integer=integer)


def same(a: Value, b: Value, *, integer: bool) -> Form:
    """Return [a = b]."""
    if a.finite is ONE and b.finite is ONE:
        return nf.indicator("eq", a.form - b.form, integer=integer)
    return at_least(a, b, integer=integer) * at_least(b, a, integer=integer)
