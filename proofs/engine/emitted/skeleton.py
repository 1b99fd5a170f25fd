"""The skeleton of synchronisation of a kernel: what orders its threads, in program order, in loops and branches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias


class Name(NamedTuple):
    """A variable, a buffer or a parameter."""

    text: str


class Apply(NamedTuple):
    """An operator or a function and what it is applied to."""

    function: str
    arguments: tuple[Term, ...]


Term: TypeAlias = int | Name | Apply


class Event(NamedTuple):
    """One instruction of synchronisation, by PTX's word for it, and its operands."""

    kind: str
    operands: tuple[Term, ...] = ()


class Loop(NamedTuple):
    """A loop over ``begin <= variable < end``; ``unrolled`` says whether nvcc is asked to unroll it."""

    variable: Name
    begin: Term
    end: Term
    body: Sequence[Node]
    unrolled: bool


class Branch(NamedTuple):
    """What is done if a condition holds, and otherwise."""

    condition: Term
    arms: tuple[Sequence[Node], Sequence[Node]]


Node: TypeAlias = Event | Loop | Branch


class Skeleton(NamedTuple):
    """The parameters of a kernel in their order, and what its threads do."""

    parameters: tuple[Name, ...]
    body: Sequence[Node]


def folded(function: str, *arguments: Term) -> Term:
    """Return an operator applied, so that what the compiler writes in two ways is one.

    Shifts and masks by constants are divisions and remainders; sums of constants are added; a quotient plus the sign of
    its remainder is the quotient rounded down, also where it is subtracted; b + (a - b) is a, and b + max(a - b, 0) is
    max(a, b).
    """
    match function, arguments:
        case ">>", (a, int(bits)):
            return Apply("//", (a, 1 << bits))
        case "&", (a, int(mask)) if mask & (mask + 1) == 0:
            return Apply("%", (a, mask + 1))
        case "+", (int(a), int(b)):
            return a + b
        case "-", (Apply("-", (a, b)), c) if (known := folded("+", b, c)) != Apply("+", (b, c)):
            return folded("-", a, known)
        case "+", (low, Apply("-", (high, start))) if low == start:  # the end of a loop
            return high
        case "+", (low, Apply("max", (Apply("-", (high, start)), 0))) if low == start:
            return Apply("max", (high, low))
        case "+", (Apply("//", (a, int(b))), Apply("//", (Apply("%", (c, d)), 2147483648))) if (a, b) == (c, d):
            return Apply("//", (a, b))
    return Apply(function, arguments)


def text(item: Term | Node) -> str:
    """Return a term, or the head of a node, as one line."""
    match item:
        case Name():
            return item.text
        case Apply("[]", (buffer, *indices)):
            return f"{text(buffer)}[{', '.join(map(text, indices))}]"
        case Apply(function, (a, b)) if function in ("and", "or") or not function.isidentifier():
            return f"({text(a)} {function} {text(b)})"
        case Apply(function, operands) | Event(function, operands):
            return f"{function}({', '.join(map(text, operands))})"
        case Loop():
            return f"for {text(item.variable)} in {text(item.begin)}:{text(item.end)}"
        case Branch():
            return f"if {text(item.condition)}"
    return str(item)
