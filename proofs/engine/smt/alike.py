"""Sequents that are the same but for names: one says of ``a`` and ``f`` what the other one says of ``b`` and ``g``.

Whether a sequent holds does not hang on how its variables and its functions without a meaning are called, only on their sorts
and on where each one occurs. So two of the same ``shape`` hold both or neither does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import z3

_MEMORY = 2**14
_known: dict[tuple[int, int], Node] = {}
_SORTS = {
    *(z3.Z3_BOOL_SORT, z3.Z3_INT_SORT, z3.Z3_REAL_SORT, z3.Z3_BV_SORT),
    *(z3.Z3_FLOATING_POINT_SORT, z3.Z3_ROUNDING_MODE_SORT),
}


class Node(NamedTuple):
    """An application: what its function is, the function's number if it has no meaning, and its operands, by number."""

    term: z3.ExprRef  # which keeps its number its own
    label: str | None  # None of what is not told apart here
    function: int | None
    children: list[tuple[int, z3.ExprRef]]


def shape(terms: Sequence[z3.ExprRef]) -> bytes | None:
    """Return a digest of some terms that is the same for the same terms in other names; None if there is none of them.

    Terms are numbered in the order in which their operands are, names in that in which they are met.
    """
    numbers: dict[int, int] = {}  # of terms
    names: dict[int | None, int | str] = {None: ""}
    found: list[str] = []
    roots = [(term.get_id(), term) for term in terms]
    open_ = [(*root, False) for root in reversed(roots)]
    while open_:
        number, term, ready = open_.pop()
        if number in numbers:
            continue
        node = _node(number, term)
        if node.label is None:
            return None
        if node.children and not ready:
            open_ += [(number, term, True), *((*child, False) for child in reversed(node.children))]
            continue
        name = names.setdefault(node.function, len(names))
        found.append(f"{node.label} {name} {[numbers[child] for child, _ in node.children]}")
        numbers[number] = len(numbers)
    found.append(str([numbers[number] for number, _ in roots]))
    return hashlib.sha256("\n".join(found).encode()).digest()


def _node(number: int, term: z3.ExprRef) -> Node:
    """Return what the term of a number is."""
    key = id(term.ctx), number
    if key not in _known:
        if len(_known) >= _MEMORY:
            _known.clear()
        _known[key] = _made(term)
    return _known[key]


def _made(term: z3.ExprRef) -> Node:
    if not z3.is_app(term):
        return Node(term, None, None, [])
    function, children = term.decl(), [(child.get_id(), child) for child in term.children()]
    label = _label(function)
    if function.kind() == z3.Z3_OP_UNINTERPRETED:
        return Node(term, label, function.get_id(), children)
    return Node(term, label if children else f"{term.sort()} {term.sexpr()}", None, children)


@lru_cache(2**12)
def _label(function: z3.FuncDeclRef) -> str | None:
    """Return what a function is, with its sorts, without the name of one that has no meaning.

    Of sorts other than these Z3 has functions that it does not tell from those without a meaning.
    """
    sorts = [*map(function.domain, range(function.arity())), function.range()]
    parameters = function.params()
    if not all(sort.kind() in _SORTS for sort in sorts) or not all(isinstance(p, int) for p in parameters):
        return None
    if function.kind() == z3.Z3_OP_UNINTERPRETED:
        return str(sorts)
    return f"{function.kind()} {function.name()} {parameters} {sorts}"
