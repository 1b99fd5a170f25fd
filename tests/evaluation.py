"""Normal forms as numbers, in double precision, to compare laws of the normal form with arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from lemmata.proofs.engine.forms import normal_form as nf
from lemmata.proofs.engine.forms.normal_form import Form
from lemmata.proofs.engine.forms.ring import Atom, Polynomial, number_of, support_of

FUNCTIONS: Mapping[str, Callable[..., float]] = {
    "log": math.log,
    "sqrt": math.sqrt,
    "floordiv": lambda a, b: a // b,
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
                return max(self.form(v, bound) for c, v in map(nf.conditional, entries) if self.form(c, bound))
            case nf.Big(operator, level, extent, body):
                values = (self.form(body, {**bound, level: k}) for k in range(round(self.form(extent, bound))))
                return math.fsum(values) if operator == "sum" else max(values)
        raise TypeError(atom)
