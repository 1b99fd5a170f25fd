"""Counterexamples: the values that a solver found, read off its model.

No error here can make a false theorem: a condition has been refuted before its counterexample is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import cvc5
import z3

from .bitvectors import subterms


def of_z3(model: z3.ModelRef, terms: list[z3.BoolRef]) -> dict[str, int]:
    """Return the value of every variable, and of every element of a tensor, that the terms mention."""
    found: dict[str, int] = {}
    for term in subterms(terms):
        if z3.is_app(term) and term.decl().kind() == z3.Z3_OP_UNINTERPRETED:
            value = integer(model.eval(term, model_completion=True))
            indices = [integer(model.eval(a, model_completion=True)) for a in term.children()]
            if value is not None:
                found[f"{term.decl().name()}{indices or ''}"] = value
    return dict(sorted(found.items()))


def of_cvc5(solver: cvc5.Solver, terms: Iterable[cvc5.Term]) -> dict[str, int]:
    """Return the value of every variable among the declared terms."""
    return {str(t).strip("|"): _cvc5_integer(solver.getValue(t)) for t in terms if not t.getSort().isFunction()}


def equal(terms: Iterable[z3.ExprRef], found: Mapping[str, int]) -> Iterator[z3.BoolRef]:
    """Yield that each unknown number of the terms has the value that was found."""
    for term in subterms(terms):
        if z3.is_const(term) and term.decl().kind() == z3.Z3_OP_UNINTERPRETED and (name := term.decl().name()) in found:
            yield term == (bool(found[name]) if z3.is_bool(term) else found[name])


def integer(value: z3.ExprRef) -> int | None:
    """Return the number that a term without unknowns is, signed if it is a bit-vector; None if it is none."""
    if z3.is_bv_value(value):
        return int(value.as_signed_long())
    if z3.is_int_value(value):
        return int(value.as_long())
    return int(z3.is_true(value)) if z3.is_bool(value) else None


def _cvc5_integer(value: cvc5.Term) -> int:
    if value.isBooleanValue():
        return int(value.getBooleanValue())
    if value.isBitVectorValue():
        unsigned, width = int(value.getBitVectorValue(10)), int(value.getSort().getBitVectorSize())
        return unsigned - (unsigned >> (width - 1) << width)
    return int(value.getIntegerValue())
