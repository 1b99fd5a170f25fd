"""Integer sequents as bit-vector sequents, for index maps that permute bits.

Swizzled addresses are sums of quotients and remainders by powers of two. As integers they are beyond the solver; as
bit-vectors a quotient is a shift and a remainder a mask.

A bit-vector proof carries over to the integers when no term leaves the range of 64 bits: the values of the kernel's
own expressions do not, by the overflow conditions of layer 0; nor do sums of an index and an offset. Hypotheses that
multiply sizes may, and are left out, which can only make the sequent harder to prove; so are those with a number that
has no place in 64 bits.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce, wraps
from typing import TypeVar

import z3

from ..base.errors import Unsupported

WIDTH = 64
_MEMORY = 2**14
_Value = TypeVar("_Value")


def of_term(function: Callable[[z3.ExprRef], _Value]) -> Callable[[z3.ExprRef], _Value]:
    """Return the same function, which remembers the values of so many terms: two conditions share most of their hypotheses.

    A term is told by its context and its number there, which are its own as long as it is kept. To compare two terms, Z3
    would make their equation.
    """
    known: dict[tuple[int, int], tuple[z3.ExprRef, _Value]] = {}

    @wraps(function)
    def remembered(term: z3.ExprRef) -> _Value:
        key = id(term.ctx), term.get_id()
        if key not in known:
            if len(known) == _MEMORY:
                known.clear()
            known[key] = term, function(term)
        return known[key][1]

    return remembered


def permutes_bits(terms: Iterable[z3.ExprRef]) -> bool:
    """Return whether a quotient or a remainder occurs in some terms."""
    return any(t.decl().kind() in (z3.Z3_OP_IDIV, z3.Z3_OP_MOD) for t in subterms(terms))


def linear(terms: Iterable[z3.BoolRef]) -> list[z3.BoolRef]:
    """Return the terms without a product of variables, a division by one, or a number of more than 64 bits."""
    return [t for t in terms if _linear(t)]


@of_term
def _linear(term: z3.BoolRef) -> bool:
    return not any(_nonlinear(s) or _too_long(s) for s in subterms([term]))


def without_products(terms: Sequence[z3.BoolRef]) -> tuple[list[z3.BoolRef], list[z3.BoolRef]]:
    """Return the terms with a variable for each product of variables, and for each division by one.

    They are true of more values, since the new variables may have any. Beside them stands, for each product, that it is
    not negative unless a factor is.
    """
    products = [t for t in _outermost(terms) if t.decl().kind() == z3.Z3_OP_MUL]
    signs = [z3.Implies(z3.And(*(factor >= 0 for factor in t.children())), t >= 0) for t in products]
    found = _outermost([*terms, *(factor >= 0 for t in products for factor in t.children())])
    values = [z3.simplify(t) for t in found]  # one name for one value
    numbers = [next(n for n, other in enumerate(values) if other.eq(value)) for value in values]
    pairs = [(t, z3.Int(f"(product {n})")) for t, n in zip(found, numbers, strict=True)]
    kept = [z3.substitute(t, *pairs) if pairs else t for t in (*terms, *signs)]
    return kept[: len(terms)], kept[len(terms) :]


def _outermost(terms: Iterable[z3.ExprRef]) -> list[z3.ExprRef]:
    """Return the parts of some terms that are not linear, but not the parts of these parts."""
    return [t for t in subterms(terms, _nonlinear) if _nonlinear(t)]


def subterms(terms: Iterable[z3.ExprRef], whole: Callable[[z3.ExprRef], bool] | None = None) -> list[z3.ExprRef]:
    """Return the terms and all their parts, each once, but for the parts of what is ``whole``."""
    found: dict[int, z3.ExprRef] = {}
    todo = list(terms)
    while todo:
        term = todo.pop()
        if term.get_id() not in found:
            found[term.get_id()] = term
            todo.extend([] if whole and whole(term) else term.children())
    return list(found.values())


def _nonlinear(term: z3.ExprRef) -> bool:
    kind = term.decl().kind()
    if kind == z3.Z3_OP_MUL:
        return sum(not z3.is_int_value(a) for a in term.children()) > 1
    return kind in (z3.Z3_OP_IDIV, z3.Z3_OP_MOD) and not z3.is_int_value(term.arg(1))


def _too_long(term: z3.ExprRef) -> bool:
    return z3.is_int_value(term) and not -(2 ** (WIDTH - 1)) <= term.as_long() < 2 ** (WIDTH - 1)


@of_term
def to_bitvectors(term: z3.ExprRef) -> z3.ExprRef:
    """Return the same term over 64-bit vectors.

    Unsupported are divisions by other than positive constants, operators without a rule, and numbers of more than 64 bits.
    """
    if _too_long(term):
        raise Unsupported(f"no bit-vector for {term}")
    if z3.is_int_value(term):
        return z3.BitVecVal(term.as_long(), WIDTH)
    kind = term.decl().kind()
    if kind == z3.Z3_OP_BV2INT:  # read off a bit-vector, itself made from integers by a bitwise operation
        narrow = _narrow(term.arg(0))
        return z3.ZeroExt(WIDTH - narrow.size(), narrow) if narrow.size() < WIDTH else narrow
    if z3.is_bool(term) and term.children() and z3.is_bv(term.arg(0)):  # the sign of such a bit-vector
        return term.decl()(*map(_narrow, term.children()))
    arguments = [to_bitvectors(a) for a in term.children()]
    if kind == z3.Z3_OP_UNINTERPRETED:
        sort = z3.BoolSort() if z3.is_bool(term) else z3.BitVecSort(WIDTH)
        return z3.Function(term.decl().name(), *(a.sort() for a in arguments), sort)(*arguments)
    if kind in _FOLDED:
        return reduce(_FOLDED[kind], arguments)
    if kind in _BOOLEAN:
        return term.decl()(*arguments)
    if kind not in _RULES:
        raise Unsupported(f"no bit-vector reading of {term.decl().name()}")
    return _RULES[kind](*arguments)


def _narrow(term: z3.BitVecRef) -> z3.BitVecRef:
    """Return a bit-vector made from integers over the vectors of these."""
    if term.decl().kind() == z3.Z3_OP_INT2BV:
        return z3.Extract(term.size() - 1, 0, to_bitvectors(term.arg(0)))
    return term.decl()(*map(_narrow, term.children())) if term.children() else term


def _exponent(divisor: z3.BitVecRef) -> int | None:
    value = divisor.as_long() if z3.is_bv_value(divisor) else 0
    if not 0 < value < 2 ** (WIDTH - 1):
        raise Unsupported("division by something other than a positive constant")
    return value.bit_length() - 1 if value & (value - 1) == 0 else None


def _quotient(a: z3.BitVecRef, b: z3.BitVecRef) -> z3.BitVecRef:
    exponent = _exponent(b)
    if exponent is not None:
        return a >> exponent  # arithmetic: rounds down
    truncated = a / b
    return z3.If(z3.And(a < 0, truncated * b != a), truncated - 1, truncated)


_FOLDED = {z3.Z3_OP_ADD: operator.add, z3.Z3_OP_SUB: operator.sub, z3.Z3_OP_MUL: operator.mul}
_BOOLEAN = {z3.Z3_OP_TRUE, z3.Z3_OP_FALSE, z3.Z3_OP_AND, z3.Z3_OP_OR, z3.Z3_OP_NOT, z3.Z3_OP_IMPLIES}
_RULES: Mapping[int, Callable[..., z3.ExprRef]] = {
    z3.Z3_OP_UMINUS: operator.neg, z3.Z3_OP_IDIV: _quotient, z3.Z3_OP_ITE: z3.If,
    z3.Z3_OP_MOD: lambda a, b: a & (b - 1) if _exponent(b) is not None else a - b * _quotient(a, b),
    z3.Z3_OP_EQ: operator.eq, z3.Z3_OP_DISTINCT: operator.ne, z3.Z3_OP_LE: operator.le, z3.Z3_OP_LT: operator.lt,
    z3.Z3_OP_GE: operator.ge, z3.Z3_OP_GT: operator.gt,
}  # fmt: skip
