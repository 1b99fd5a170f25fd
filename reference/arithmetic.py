"""Arithmetic of sizes, written as in Python: ``(tokens+127)//128`` in a shape, ``tokens % 128 == 0`` between sizes."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

Operators = Mapping[type[ast.AST], Callable[[Any, Any], Any]]

OPERATORS: Operators = {
    **{ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul},
    **{ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod},
    **{ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.LtE: operator.le, ast.Lt: operator.lt},
    **{ast.GtE: operator.ge, ast.Gt: operator.gt},
}
"""What the signs mean of Python's integers."""


def names(text: str) -> set[str]:
    """Return the sizes that a text mentions.

    Raises:
        ValueError: the text is something else than integers, names, + - * // % and at most one comparison.
    """
    found: set[str] = set()

    class Every(dict[str, int]):
        def __missing__(self, name: str) -> int:
            found.add(name)
            return 1

    evaluate(text, Every(), {sign: lambda a, b: 1 for sign in OPERATORS})
    return found


def evaluate(text: str, values: Mapping[str, Any], operators: Operators = OPERATORS) -> Any:
    """Return the value of a text.

    Args:
        text: the arithmetic.
        values: the sizes, by name.
        operators: what the signs mean, of numbers by default.

    Raises:
        ValueError: the text is something else than integers, names, + - * // % and at most one comparison.
    """
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError:
        raise ValueError(f"expected arithmetic of sizes, got {text!r}") from None

    def value(node: ast.expr) -> Any:
        match node:
            case ast.Constant(int(number)) if not isinstance(number, bool):
                return number
            case ast.Name(name):
                return values[name]
            case ast.BinOp(left, sign, right) if type(sign) in operators:
                return operators[type(sign)](value(left), value(right))
            case ast.Compare(left, [sign], [right]) if type(sign) in operators and node is tree:
                return operators[type(sign)](value(left), value(right))
        raise ValueError(f"expected integers, names, + - * // % and a comparison, got {text!r}")

    return value(tree)
