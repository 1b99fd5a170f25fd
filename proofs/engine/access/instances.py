"""Two executions of one kernel, side by side.

Every question about races and repeated writes is about two executions of a statement, by different threads, blocks or
iterations. The second is the first with everything renamed that may differ between them: variables, and values read
whose contents are not known. Only the sizes, the elements of read-only tensors, and the variables named as common keep
their names. A name shared by mistake would make the two agree where they need not, and the proof hollow.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

import z3

from ..base.conditions import Condition, Site, conjunction
from ..smt.bitvectors import linear, of_term, permutes_bits, subterms, to_bitvectors
from ..smt.solve import decide
from .trace import Access, Context, Variable

PRIME = "'"


@dataclass(frozen=True)
class Renaming:
    """Gives every constant but the common ones a new name: the old one and a suffix."""

    common: frozenset[str]
    suffix: str = PRIME
    _known: dict[int, tuple[z3.ExprRef, z3.ExprRef]] = field(default_factory=dict, compare=False)
    _accesses: dict[int, tuple[Access, Access]] = field(default_factory=dict, compare=False)

    def term(self, term: z3.ExprRef) -> z3.ExprRef:
        """Return a renamed term."""
        if term.get_id() not in self._known:
            names = {c.decl().name(): c for c in constants([term])}
            pairs = [(c, z3.Const(n + self.suffix, c.sort())) for n, c in names.items() if n not in self.common]
            self._known[term.get_id()] = term, z3.substitute(term, *pairs) if pairs else term
        return self._known[term.get_id()][1]

    def variable(self, v: Variable) -> Variable:
        """Return a renamed variable, with its range."""
        name = v.name if v.name in self.common else v.name + self.suffix
        extent = None if v.extent is None else self.term(v.extent)
        return replace(v, name=name, low=self.term(v.low), extent=extent)

    def context(self, c: Context) -> Context:
        """Return a renamed context."""
        variables, facts, guards = map(self.variable, c.variables), map(self.term, c.facts), map(self.term, c.guards)
        return Context(tuple(variables), tuple(facts), tuple(guards), c.site)

    def access(self, a: Access) -> Access:
        """Return a renamed access, each time the same."""
        if id(a) not in self._accesses:
            renamed = replace(a, indices=tuple(self.term(i) for i in a.indices), context=self.context(a.context))
            self._accesses[id(a)] = a, renamed
        return self._accesses[id(a)][1]


def equal(ours: Sequence[Variable], theirs: Sequence[Variable]) -> z3.BoolRef:
    """Return that two executions are the same one."""
    return conjunction(*(v.term == w.term for v, w in zip(ours, theirs, strict=True)))


def agree(store: Access, again: Access, sizes: Collection[str]) -> z3.BoolRef:
    """Return that two executions of a store are by one block in one iteration, if that alone makes their values equal."""
    pairs = zip(store.context.variables, again.context.variables, strict=True)
    common = [(v, w) for v, w in pairs if v.kind in ("block", "loop")]
    known = {*sizes, *store.common, *(v.name for v, _ in common)}
    equal = store.depends is not None and names(store.depends) <= known
    return conjunction(*(v.term == w.term for v, w in common)) if equal else z3.BoolVal(False)


def constants(terms: Iterable[z3.ExprRef]) -> list[z3.ExprRef]:
    """Return the uninterpreted constants that occur in the terms."""
    return [d() for d in symbols(terms) if d.arity() == 0]


def names(terms: Iterable[z3.ExprRef]) -> set[str]:
    """Return the names of the uninterpreted constants that occur in the terms."""
    return {c.decl().name() for c in constants(terms)}


def symbols(terms: Iterable[z3.ExprRef]) -> list[z3.FuncDeclRef]:
    """Return the uninterpreted constants and functions that occur in the terms."""
    return list({d.get_id(): d for term in terms for d in _symbols(term)}.values())


@of_term
def _symbols(term: z3.ExprRef) -> tuple[z3.FuncDeclRef, ...]:
    return tuple(t.decl() for t in subterms([term]) if t.decl().kind() == z3.Z3_OP_UNINTERPRETED)


def at(context: Context, kind: str, statement: str, goal: z3.BoolRef, facts: Iterable[z3.BoolRef]) -> Condition:
    """Return the condition that a goal holds where execution stands, under what holds there and some facts."""
    return sequent(kind, statement, (*facts, *context.path), goal, context.site)


def sequent(kind: str, statement: str, hypotheses: Iterable[z3.BoolRef], goal: z3.BoolRef, site: Site) -> Condition:
    """Return a condition in the theory that suits its goal: bit-vectors where an index permutes bits, else integers."""
    given = tuple(hypotheses)
    if permutes_bits([goal]) and linear([goal]):
        kept = linear(given)
        bits = Condition(kind, statement, tuple(map(to_bitvectors, kept)), to_bitvectors(goal), site)
        held = {id(g) for g in kept}
        lost = {c.get_id() for c in constants(g for g in given if id(g) not in held)}
        if not lost & {c.get_id() for c in constants([goal])} or decide(bits, witness=False).verdict == "proved":
            return bits  # what was lost may matter to a refutation, but not to a proof without it
    return Condition(kind, statement, given, goal, site)
