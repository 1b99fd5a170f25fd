"""Normal forms as a reader writes them, and as numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from . import normal_form as nf
from .normal_form import Form
from .ring import Atom, Monomial, Polynomial, Rational, number_of, support_of

_DEEPEST = 5


def pretty(p: Form, *, limit: int = 600) -> str:
    """The form in infix notation, cut to ``limit`` characters."""
    text = _form(p, 0)
    return text if len(text) <= limit else f"{text[:limit]} ... ({len(text)} characters)"


def _form(p: Form, depth: int) -> str:
    if depth > _DEEPEST:
        return "..."
    terms = [_term(m, c, depth) for m, c in sorted(p.terms.items(), key=lambda t: (len(t[0]) == 0, t[0]))]
    return " + ".join(terms).replace("+ -", "- ") or "0"


def _term(monomial: Monomial, coefficient: Rational, depth: int) -> str:
    above = [_power(a, e, depth) for a, e in monomial if e > 0 and not isinstance(nf.atom_of(a), nf.Exp)]
    below = [_power(a, -e, depth) for a, e in monomial if e < 0 and not isinstance(nf.atom_of(a), nf.Exp)]
    rates = [(a.argument, e) for a, e in ((nf.atom_of(a), e) for a, e in monomial) if isinstance(a, nf.Exp)]
    if rates:
        argument = " + ".join(_form(f * e, depth + 1) for f, e in rates).replace("+ -", "- ")
        above.append(f"exp({argument})")
    sign = "-" if coefficient < 0 else ""
    size = Fraction(coefficient) if coefficient >= 0 else -Fraction(coefficient)
    if size != 1 or not above:
        above.insert(0, _number(size))
    quotient = f" / {below[0]}" if len(below) == 1 else f" / ({' '.join(below)})" if below else ""
    return sign + " ".join(above) + quotient


def _number(value: Fraction) -> str:
    if value.denominator == 1 and value < 10**9:
        return str(int(value))
    return f"{float(value):.9g}"


def _power(atom: int, exponent: Rational, depth: int) -> str:
    return _atom(atom, depth) + ("" if exponent == 1 else f"^{exponent}")


def _atom(number: int, depth: int) -> str:
    inner = depth + 1
    match atom := nf.atom_of(number):
        case nf.Variable(name, _):
            return name
        case nf.Bound(level):
            return f"k{level}"
        case nf.Read(name, forms):
            return f"{name}[{', '.join(_form(f, inner) for f in forms)}]"
        case nf.Apply(name, forms):
            return f"{name}({', '.join(_form(f, inner) for f in forms)})"
        case Polynomial(p):
            return f"({_form(p, inner)})"
        case nf.Big(operator, level, extent, body):
            return f"{operator}_{{k{level} < {_form(extent, inner)}}}({_form(body, inner)})"
        case nf.Max(entries):
            parts = [_form(v, inner) + ("" if c is nf.ONE else f" if {_form(c, inner)}") for c, v in entries]
            return f"max({', '.join(sorted(parts))})"
        case nf.Indicator(relation, p, _):
            return f"[{_form(p, inner)} {'>=' if relation == 'ge' else '='} 0]"
        case nf.Exp(p):
            return f"exp({_form(p, inner)})"
    raise TypeError(atom)


Number = float | Fraction
FUNCTIONS: Mapping[str, Callable[..., float]] = {
    "log": math.log,
    "sqrt": math.sqrt,
    "floordiv": lambda a, b: a // b,
    "floormod": lambda a, b: a % b,
}


def evaluate(
    p: Form,
    variables: Mapping[str, float],
    reads: Callable[[str, Sequence[int]], float],
    functions: Mapping[str, Callable[..., float]] = FUNCTIONS,
) -> float:
    """The value of a form at given variables and inputs, in double precision."""
    return _Evaluation(variables, reads, functions).form(p, {})


class _Evaluation:
    def __init__(
        self,
        variables: Mapping[str, float],
        reads: Callable[[str, Sequence[int]], float],
        functions: Mapping[str, Callable[..., float]],
    ) -> None:
        self.variables, self.reads, self.functions = variables, reads, functions
        self.memo: dict[tuple[int, tuple[tuple[int, int], ...]], float] = {}

    def form(self, p: Form, bound: Mapping[int, int]) -> float:
        return math.fsum(
            float(c) * math.prod(self.atom(a, bound) ** float(e) for a, e in m) for m, c in p.terms.items()
        )

    def atom(self, number: int, bound: Mapping[int, int]) -> float:
        inside = support_of(number)
        key = number, tuple((k, v) for k, v in bound.items() if number_of(nf.Bound(k)) in inside)
        if key not in self.memo:
            self.memo[key] = self._atom(nf.atom_of(number), bound)
        return self.memo[key]

    def _atom(self, atom: Atom, bound: Mapping[int, int]) -> float:
        match atom:
            case nf.Variable(name, _):
                return self.variables[name]
            case nf.Bound(level):
                return bound[level]
            case nf.Read(name, index):
                return self.reads(name, [round(self.form(i, bound)) for i in index])
            case nf.Apply(name, arguments):
                return self.functions[name](*(self.form(a, bound) for a in arguments))
            case nf.Exp(p):
                return math.exp(self.form(p, bound))
            case Polynomial(p):
                return self.form(p, bound)
            case nf.Indicator("ge", p, _):
                return float(self.form(p, bound) >= 0)
            case nf.Indicator("eq", p, _):
                return float(self.form(p, bound) == 0)
            case nf.Max(entries):
                return max(self.form(v, bound) for c, v in entries if self.form(c, bound))
            case nf.Big(operator, level, extent, body):
                values = (self.form(body, {**bound, level: k}) for k in range(round(self.form(extent, bound))))
                return math.fsum(values) if operator == "sum" else max(values)
        raise TypeError(atom)
