"""The range layer: what the equivalence over the reals leaves to prove about the floats.

Over the reals exp never overflows and a running maximum does not matter, so a kernel without one is "equal". This layer
shows, for the same terms, that every exp has an argument of at most 0, that no denominator is 0, that every operand of
rsqrt and log is positive, and that no operand of a square root is negative. Infinities that could make a NaN are rejected
earlier, by the symbolic execution itself. Overflow and underflow of sums and products are not modelled, but for one: where
a maximum of few entries is subtracted from the arguments of exp in a denominator, one of its summands must be at least
exp(-80), which no float rounds to 0. Other denominators in which exp occurs are named, unless a constant such as an eps is
added to what is not negative.

The conditions are linear over the atoms: a product of several atoms, or a power, is an unknown of which only the sign
is known, and, of a product with a condition, that it is the rest where the condition holds and 0 elsewhere. What is
computed as a square, or as a sum of such, is not negative, though multiplied out it may look so. A maximum is at least
each of its entries and equal to one; exp is positive; a sum has the sign of its terms. The conditions under which an
operation runs are hypotheses, and so is the range that the contract gives the elements of a float input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import partial, reduce
from typing import Any

import z3

from ..base.conditions import Condition, Site, disjunction
from ..forms import normal_form as nf
from ..forms.choices import indices_of_maxima
from ..forms.entailment import Facts, Intervals
from ..forms.extended import Signs, under
from ..forms.normal_form import Form
from ..forms.ring import Atom, Monomial, Rational, single
from .obligations import Kind, Obligation
from .obligations import Waiver as Waiver
from .outcome import Execution

UNDERFLOW = "underflow of a denominator"
_NORMAL = Fraction(1, 2**126)  # the smallest normal float
_LEAST = -80  # exp(-80) > 2^-126
_CASES = 256  # values of the indices of a maximum that are looked at one by one
_GOALS: Mapping[Kind, tuple[str, Callable[[Any], Any]]] = {
    "exp": ("the argument of exp is at most {}", lambda value: value <= 0),
    "nonzero": ("the denominator is not 0", lambda value: z3.Or(value > 0, value < 0)),
    "positive": ("the value is positive", lambda value: value > 0),
    "nonnegative": ("the value is not negative", lambda value: value >= 0),
}


def conditions(
    execution: Execution, waivers: Sequence[Waiver] = ()
) -> tuple[list[Condition], list[tuple[Condition, Waiver]]]:
    """Return the range conditions of an execution: those to be proved, and those waived."""
    open_conditions: list[Condition] = []
    waived: list[tuple[Condition, Waiver]] = []
    for obligation in dict.fromkeys(execution.obligations):
        condition = _condition(obligation, execution)
        if waiver := next((w for w in waivers if w.text in obligation.site and w.kind == obligation.kind), None):
            waived.append((condition, waiver))
        else:
            floor = _floor(obligation, execution)
            open_conditions += [condition, floor] if floor else [condition]
    return open_conditions, waived


def unmodelled(execution: Execution) -> tuple[str, ...]:
    """Return the name of what is not shown of some denominator or operand of a logarithm, in which exp occurs."""
    operands = (o for o in dict.fromkeys(execution.obligations) if o.kind in ("nonzero", "positive"))
    exps = (o for o in operands if any(isinstance(nf.atom_of(a), nf.Exp) for a in nf.support(o.value.form)))
    left = (under(o.value.finite, o.value.form) for o in exps if _floor(o, execution) is None)
    signs, forms = Signs(execution.positive), map(execution.facts.decide_all, left)
    # what is not negative, and a constant that is no subnormal float, such as an eps
    return (UNDERFLOW,) if any(signs.form(p) is None or p.terms.get((), 0) < _NORMAL for p in forms) else ()


def _floor(obligation: Obligation, execution: Execution) -> Condition | None:
    """Return that a denominator has a summand of at least exp(-80); None if that is not asked.

    It is asked where all summands are exps, and a maximum of few entries is subtracted from their arguments or the contract
    bounds what is in these.
    """
    decide, value = execution.facts.decide_all, obligation.value
    summands, inside = nf.without_exps(decide(under(value.finite, value.form)))
    known = execution.facts.floats
    subtracted = any(isinstance(nf.atom_of(a), nf.Max) for m in inside.terms for a, _ in m)
    bounded = any(isinstance(a, nf.Read) and a.buffer in known for a in map(nf.atom_of, nf.support(value.form)))
    if obligation.kind not in ("nonzero", "positive") or not (subtracted or bounded):
        return None
    linear, terms = Linear(execution.positive, known, {}), list(_each(summands))
    powers = [power for term in terms for power in _powers(term)]
    if len(powers) < len(terms):
        return None
    large = [z3.And(*(linear.real(c) == 1 for c in where), linear.real(inside + a) >= _LEAST) for where, a in powers]
    path = [linear.real(decide(c)) == 1 for c in obligation.path]
    statement = f"the denominator does not underflow: {value.form}"
    return Condition("range", statement, (*linear.facts, *path), disjunction(*large), Site(obligation.site))


def _powers(p: Form) -> Iterator[tuple[list[Form], Form]]:
    """Yield for each summand that is an exp, under conditions, these and its argument."""
    for monomial, coefficient in p.terms.items():
        factors = [(nf.atom_of(a), exponent) for a, exponent in monomial]
        exps = [a.argument * exponent for a, exponent in factors if isinstance(a, nf.Exp)]
        conditions = [nf.of_atom(a) for a, _ in factors if isinstance(a, nf.Indicator)]
        if coefficient >= 1 and len(exps) + len(conditions) == len(factors):
            yield conditions, sum(exps, nf.ZERO)


def _condition(obligation: Obligation, execution: Execution) -> Condition:
    facts = execution.facts
    # where it is not -inf, for exp(-inf) = 0 is harmless
    operand = reduce(lambda p, c: under(c, p), (obligation.value.finite, *obligation.path), obligation.value.form)
    if obligation.kind != "exp":
        operand = nf.without_exps(operand)[0]  # which do not change its sign
    operands = operand, obligation.value.finite, *obligation.path
    forms = [facts.decide_all(p) for p in operands]
    linear = Linear(execution.positive, facts.floats, {n: facts.below.get(n) for n in indices_of_maxima(forms[0])})
    cases = [[linear.real(p) for p in case] for case in _cases(forms, facts)]
    if sign := obligation.value.computed:
        holds = _GOALS["positive" if sign == "positive" else "nonnegative"][1]
        linear.facts += [z3.Implies(z3.And(*(c == 1 for c in here)), holds(value)) for value, *here in cases]
    most = _most(execution) if obligation.kind == "exp" else 0
    words, goal = _GOALS[obligation.kind]
    goals = [
        z3.Implies(z3.And(*(c == 1 for c in here)), goal(value - z3.Q(*Fraction(most).as_integer_ratio())))
        for value, *here in cases
    ]
    statement = f"{words.format(f'{most:g}')}: {obligation.value.form}"
    return Condition("range", statement, tuple(linear.facts), z3.And(*goals), Site(obligation.site))


def _most(execution: Execution) -> float:
    """Return what an argument of exp is at most: more than 0 if a contract bounds floats, or a proof says how much.

    exp(64) < 2^93 leaves room for sums, and exp(11) is still a number of half precision; none is of 8 bits.
    """
    if any(t.startswith(("float8", "float4")) for t in execution.types):
        return 0
    widest = 11 if "float16" in execution.types else 64
    return min(widest, 64 if execution.facts.floats else execution.most)


def _cases(forms: Sequence[Form], facts: Facts) -> list[Sequence[Form]]:
    """Return the forms for every value of each index, of few values, that a maximum in the first one runs over."""
    cases: list[Sequence[Form]] = [forms]
    for number in indices_of_maxima(forms[0]):
        extent = int(facts.below.get(number, nf.ZERO).constant or 0)
        if 0 < extent * len(cases) <= _CASES:
            values = [{number: nf.form(k)} for k in range(extent)]
            cases = [[nf.substitute(p, value) for p in case] for case in cases for value in values]
    return cases


class Linear:
    """Forms as linear real terms over Z3 unknowns; ``facts`` collects what is known of the unknowns met.

    Of what a maximum or a sum runs over, few values are taken one by one, and of many those of ``indices`` with that extent.
    """

    def __init__(self, positive: frozenset[str], floats: Intervals, indices: Mapping[int, Form | None]) -> None:
        self.facts: list[Any] = []
        self._floats = floats
        self._indices = indices
        self._signs = Signs(positive)
        self._unknowns: dict[Monomial, Any] = {}

    def real(self, p: Form) -> Any:
        """Return a form as a linear term."""
        terms = [z3.Q(c.numerator, c.denominator) * self._unknown(m) for m, c in p.terms.items()]
        return z3.Sum(*terms) if terms else z3.RealVal(0)

    def _unknown(self, monomial: Monomial) -> Any:
        if not monomial:
            return z3.RealVal(1)
        if monomial not in self._unknowns:
            unknown = self._unknowns[monomial] = z3.Real(f"{nf.monomial_form(monomial)!r}#{len(self._unknowns)}")
            if sign := self._signs.monomial(monomial):
                self.facts.append(unknown > 0 if sign == "positive" else unknown >= 0)
            if len(monomial) == 1 and monomial[0][1] == 1:
                self._describe(nf.atom_of(monomial[0][0]), unknown)
            elif where := [a for a, power in monomial if power > 0 and isinstance(nf.atom_of(a), nf.Indicator)]:
                self._take_apart(monomial, where[0], unknown)
        return self._unknowns[monomial]

    def _take_apart(self, monomial: Monomial, condition: int, unknown: Any) -> None:
        """Record that a product with a condition is the rest where the condition holds, and 0 elsewhere."""
        rest = self._unknown(tuple(factor for factor in monomial if factor[0] != condition))
        holds = self._unknown(((condition, 1),))
        self.facts += [z3.Implies(holds == 1, unknown == rest), z3.Implies(holds == 0, unknown == 0)]

    def _describe(self, atom: Atom, unknown: Any) -> None:
        """Record that a maximum is one of its entries and at least each of them, and that a condition is 1 where it holds.

        If a sum of conditions has to be at least 1, each of them implies that.
        """
        match atom:
            case nf.Max(entries):
                ordered = map(nf.conditional, sorted(entries, key=lambda v: v.id))
                pairs = [(self.real(c) >= 1, self.real(v)) for c, v in ordered]
                self.facts += [z3.Implies(holds, unknown >= v) for holds, v in pairs]
                taken = [z3.And(holds, unknown == v) for holds, v in pairs]
                self.facts.append(z3.Or(*taken, z3.Not(z3.Or(*(holds for holds, _ in pairs)))))
            case nf.Read(buffer, _) if buffer in self._floats:
                low, high = self._floats[buffer]
                self.facts += [unknown >= low] if low is not None else []
                self.facts += [unknown <= high] if high is not None else []
            case nf.Big("max", _, extent, _):
                for condition, value in (nf.conditional(nf.opened(atom, k)) for k in self._places(extent)):
                    self.facts.append(z3.Implies(self.real(condition) >= 1, unknown >= self.real(value)))
            case nf.Indicator(relation, inner, integer):
                self.facts.append(z3.Or(unknown == 0, unknown == 1))
                if relation == "ge" and not integer:
                    self.facts.append((unknown == 1) == (self.real(inner) >= 0))
                for count, some in ((inner + 1, unknown), (-inner, 1 - unknown)) if relation == "ge" else ():
                    self.facts += [self.real(c) <= some for c in self._conditions(count)]

    def _places(self, extent: Form) -> list[Form]:
        """Return indices below an extent: all, if they are few, or those known."""
        few = [nf.form(k) for k in _few(extent, _CASES)]
        return few or [nf.of_atom(nf.atom_of(n)) for n, below in self._indices.items() if below is extent]

    def _conditions(self, p: Form) -> list[Form]:
        """Return conditions, each of which implies p >= 1, if p is a sum of conditions and of what is not negative."""
        found: list[Form] = []
        for extent, summand in _summands(p):
            any_of_them = summand(nf.fresh("k"))
            if any_of_them * any_of_them is any_of_them:  # 0 or 1
                found += map(summand, self._places(extent))
            elif self._signs.form(any_of_them) is None:
                return []
        return found


def _few(extent: Form, most: int = nf.LONGEST_MAX) -> range:
    """Return the values below an extent, if it is constant and small."""
    size = extent.constant
    return range(int(size) if size is not None and size <= most else 0)


def _each(p: Form) -> Iterator[Form]:
    """Yield the summands of a form, and of the sums in it over few values."""
    for monomial, coefficient in p.terms.items():
        term = nf.monomial_form(monomial, coefficient)
        big = single(term)
        if isinstance(big, nf.Big) and big.operator == "sum":
            yield from (nf.opened(big, nf.form(k)) for k in _few(big.extent))
        else:
            yield term


def _summands(p: Form) -> Iterator[tuple[Form, Callable[[Form], Form]]]:
    """Yield sums that add up to a form, by extent and summand: sums over equally many values as one, other terms alone."""

    def added_up(parts: Sequence[tuple[Rational, nf.Big]], k: Form) -> Form:
        return sum((c * nf.opened(big, k) for c, big in parts), nf.ZERO)

    def alone(monomial: Monomial, coefficient: Rational, _: Form) -> Form:
        return nf.monomial_form(monomial, coefficient)

    atoms = {m: single(nf.monomial_form(m)) for m in p.terms}
    bigs = {m: b for m, b in atoms.items() if isinstance(b, nf.Big) and b.operator == "sum"}
    for extent in dict.fromkeys(b.extent for b in bigs.values()):
        yield extent, partial(added_up, [(p.terms[m], b) for m, b in bigs.items() if b.extent is extent])
    yield from ((nf.ONE, partial(alone, m, c)) for m, c in p.terms.items() if m not in bigs)
