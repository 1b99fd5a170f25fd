"""Normal forms as a reader writes them. Importing this module makes forms print themselves so.

It is not trusted: what it makes of a form is read by people, and no proof looks at it.
"""

from __future__ import annotations

from fractions import Fraction

from . import normal_form as nf
from .normal_form import Form
from .ring import Monomial, Polynomial, Rational

_DEEPEST = 5


def pretty(p: Form, *, limit: int = 600) -> str:
    """Return the form in infix notation, cut to ``limit`` characters."""
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
        case nf.Apply("where", (condition, value)):
            return f"{_form(value, inner)} if {_form(condition, inner)}"
        case nf.Apply(name, forms):
            return f"{name}({', '.join(_form(f, inner) for f in forms)})"
        case Polynomial(p):
            return f"({_form(p, inner)})"
        case nf.Big(operator, level, extent, body):
            return f"{operator}_{{k{level} < {_form(extent, inner)}}}({_form(body, inner)})"
        case nf.Max(entries):
            return f"max({', '.join(sorted(_form(v, inner) for v in entries))})"
        case nf.Indicator(relation, p, _):
            return f"[{_form(p, inner)} {'>=' if relation == 'ge' else '='} 0]"
        case nf.Exp(p):
            return f"exp({_form(p, inner)})"
    raise TypeError(atom)


Form.__repr__ = pretty  # type: ignore[method-assign, assignment]  # set here, as forms import nothing that prints them
