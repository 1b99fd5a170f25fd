"""Integers and bits of floats as bit-vectors, for kernels that compute on words: what each operator of the IR does to them.

An integer of w bits is a bit-vector of w bits, and wraps as the GPU's does. A float is its bits: it may be moved, converted
where that is exact, and read as an integer; nothing is computed on it, but for the product of two constants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import z3

from ..base.errors import Unsupported
from ..semantics.algebra import Binary, Comparison, Unary

_FLOATS = {"float32": z3.Float32(), "bfloat16": z3.FPSort(8, 8)}
_WIDTHS = {"bool": 1, "int32": 32, "uint32": 32, "float32": 32, "bfloat16": 16, "int64": 64, "uint64": 64}


def width(dtype: str) -> int:
    """Return the bits of a type."""
    if dtype not in _WIDTHS:
        raise Unsupported(f"words of type {dtype}")
    return _WIDTHS[dtype]


def word(value: int) -> z3.BitVecNumRef:
    """Return a constant of 32 bits."""
    return z3.BitVecVal(value, 32)


def literal(value: float, dtype: str) -> z3.ExprRef:
    """Return a constant of a type."""
    if dtype == "bool":
        return z3.BoolVal(bool(value))
    if dtype in _FLOATS:
        return z3.simplify(z3.fpToIEEEBV(z3.FPVal(value, _FLOATS[dtype])))
    return z3.BitVecVal(int(value), width(dtype))


def infinity(dtype: str) -> z3.ExprRef:
    """Return positive infinity."""
    return z3.simplify(z3.fpToIEEEBV(z3.fpPlusInfinity(_FLOATS[dtype])))


def cast(a: z3.ExprRef, source: str, target: str) -> z3.ExprRef:
    """Return a converted value. Integers wrap; of floats only bf16 to fp32 is known, which appends 16 zeros."""
    if (source, target) == ("bfloat16", "float32"):
        return z3.Concat(a, z3.BitVecVal(0, 16))
    if source in _FLOATS or target in _FLOATS or "bool" in (source, target):
        raise Unsupported(f"words of type {source} made {target}")
    more = width(target) - width(source)
    if more > 0:
        return z3.ZeroExt(more, a) if source.startswith("uint") else z3.SignExt(more, a)
    return z3.simplify(z3.Extract(width(target) - 1, 0, a)) if more < 0 else a


def popcount(a: z3.BitVecRef) -> z3.BitVecRef:
    """Return how many bits are set."""
    bits = [z3.ZeroExt(a.size() - 1, z3.Extract(i, i, a)) for i in range(a.size())]
    return sum(bits[1:], bits[0])


def leading_zeros(a: z3.BitVecRef) -> z3.BitVecRef:
    """Return how many bits above the highest set one there are; all if none is set."""
    result: z3.BitVecRef = z3.BitVecVal(a.size(), a.size())
    for i in range(a.size()):
        result = z3.If(z3.Extract(i, i, a) == 1, z3.BitVecVal(a.size() - 1 - i, a.size()), result)
    return result


def unary(operator: Unary, a: z3.ExprRef) -> z3.ExprRef:
    """Return a function of one word or truth value."""
    known: Mapping[str, Callable[[Any], z3.ExprRef]] = {"not": z3.Not, "popcount": popcount, "clz": leading_zeros}
    if operator not in known:
        raise Unsupported(f"{operator} of words")
    return known[operator](a)


def _floored(a: z3.BitVecRef, b: z3.BitVecRef) -> z3.BitVecRef:
    quotient = a / b
    return z3.If(z3.And(z3.SRem(a, b) != 0, (a < 0) != (b < 0)), quotient - 1, quotient)


def _shifted(a: z3.BitVecRef, b: z3.BitVecRef, result: z3.BitVecRef) -> z3.BitVecRef:
    """Return a shifted word, which may be anything if it is shifted by no number of its bits."""
    if z3.is_bv_value(b) and b.as_long() < a.size():
        return result
    anything = z3.Function("shifted too far", a.sort(), b.sort(), a.sort())
    return z3.If(z3.ULT(b, a.size()), result, anything(a, b))


_BINARY: Mapping[str, Callable[[Any, Any], z3.ExprRef]] = {
    **{"add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b},
    **{"bitand": lambda a, b: a & b, "bitor": lambda a, b: a | b, "bitxor": lambda a, b: a ^ b},
    **{"and": z3.And, "or": z3.Or, "shl": lambda a, b: _shifted(a, b, a << b)},
}
_SIGNED: Mapping[str, Callable[[Any, Any], z3.ExprRef]] = {
    **{"min": lambda a, b: z3.If(a <= b, a, b), "max": lambda a, b: z3.If(a >= b, a, b)},
    **{
        "floordiv": _floored,
        "floormod": lambda a, b: a - _floored(a, b) * b,
        "shr": lambda a, b: _shifted(a, b, a >> b),
    },
    **{"truncdiv": lambda a, b: a / b, "truncmod": z3.SRem},
    **{"lt": lambda a, b: a < b, "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b},
}
_UNSIGNED: Mapping[str, Callable[[Any, Any], z3.ExprRef]] = {
    **{"min": lambda a, b: z3.If(z3.ULE(a, b), a, b), "max": lambda a, b: z3.If(z3.UGE(a, b), a, b)},
    **{"floordiv": z3.UDiv, "floormod": z3.URem, "truncdiv": z3.UDiv, "truncmod": z3.URem},
    "shr": lambda a, b: _shifted(a, b, z3.LShR(a, b)),
    **{"lt": z3.ULT, "le": z3.ULE, "gt": z3.UGT, "ge": z3.UGE},
}
_EQUAL: Mapping[str, Callable[[Any, Any], z3.ExprRef]] = {"eq": lambda a, b: a == b, "ne": lambda a, b: a != b}


def binary(operator: Binary | Comparison, a: z3.ExprRef, b: z3.ExprRef, dtype: str) -> z3.ExprRef:
    """Return an operation on two values of one type."""
    if dtype in _FLOATS:
        if operator != "mul" or not (z3.is_bv_value(a) and z3.is_bv_value(b)):
            raise Unsupported(f"{operator} of floats as words")
        x, y = (z3.fpBVToFP(c, _FLOATS[dtype]) for c in (a, b))
        return z3.simplify(z3.fpToIEEEBV(z3.fpMul(z3.RNE(), x, y)))
    table = {**_BINARY, **_EQUAL, **(_UNSIGNED if dtype.startswith("uint") else _SIGNED)}
    if operator not in table:
        raise Unsupported(f"{operator} of words")
    return table[operator](a, b)
