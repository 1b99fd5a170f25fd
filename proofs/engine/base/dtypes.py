"""The machine types of the compiler's IR, by name: ``int32``, ``float16x4``, ``bool``."""

from __future__ import annotations

import re

import z3


def is_integer(dtype: str) -> bool:
    """Return whether values of a type, or of its lanes, are integers or booleans."""
    return re.fullmatch(r"(bool|u?int\d+)(x\d+)?", dtype) is not None


def bits(dtype: str) -> int:
    """Return the width in bits of one element of a type."""
    found = re.fullmatch(r"[a-z]+(\d+)?.*?(x\d+)?", dtype)
    return 8 if dtype.startswith("bool") else int(found[1]) if found and found[1] else 64


def span(dtype: str) -> tuple[int, int]:
    """Return the least and the largest value of a type of integers."""
    if dtype.startswith("bool"):
        return 0, 1
    width = bits(dtype)
    return (0, 2**width - 1) if dtype.startswith("uint") else (-(2 ** (width - 1)), 2 ** (width - 1) - 1)


def fits(term: z3.ArithRef, dtype: str) -> z3.BoolRef:
    """Return the formula that an integer is representable in a type."""
    least, most = span(dtype)
    return z3.And(term >= least, term < most + 1)


def lanes(dtype: str) -> int:
    """Return the number of lanes of a type, which is 1 unless it is a vector."""
    found = re.search(r"x(\d+)$", dtype)
    return int(found[1]) if found else 1


def number(term: z3.ExprRef) -> z3.ArithRef:
    """Return a truth value as 0 or 1, and an integer as it is."""
    return z3.If(term, z3.IntVal(1), z3.IntVal(0)) if z3.is_bool(term) else term
