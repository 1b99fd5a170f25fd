"""The arithmetic of the interpreter: the types of the IR as torch holds them, and the operations on them.

Types of 8 bits are held in float32 and rounded at each cast, unsigned ones in int64 and reduced modulo a power of two.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..base.errors import Unsupported
from ..semantics.algebra import Binary, Comparison, Unary

_TYPES = {
    "bool": torch.bool,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
_WORDS = {"uint32": 2**32 - 1, "uint64": -1}  # the bits that count; all of 64 do, and only numbers below 2^63 occur
NARROW = {
    "float8_e4m3": torch.float8_e4m3fn,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}
UNARY: dict[Unary, Callable[[Tensor], Tensor]] = {
    "exp": torch.exp,
    "exp2": torch.exp2,
    "log": torch.log,
    "log2": torch.log2,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "rcp": torch.reciprocal,
    "abs": torch.abs,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "sin": torch.sin,
    "cos": torch.cos,
    "erf": torch.erf,
    "not": torch.logical_not,
    "popcount": lambda a: _popcount(a),
    "clz": lambda a: _clz(a),
}
BINARY: dict[Binary, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "floordiv": lambda a, b: torch.div(a, b, rounding_mode="floor"),
    "floormod": torch.remainder,
    "truncdiv": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    "truncmod": torch.fmod,
    "max": torch.fmax,  # CUDA's fmaxf and fminf drop a NaN
    "min": torch.fmin,
    "maxnan": torch.maximum,
    "pow": torch.pow,
    "and": torch.logical_and,
    "or": torch.logical_or,
    "bitand": torch.bitwise_and,
    "bitor": torch.bitwise_or,
    "bitxor": torch.bitwise_xor,
    "shl": torch.bitwise_left_shift,
    "shr": torch.bitwise_right_shift,
}
COMPARISON: dict[Comparison, Callable[[Tensor, Tensor], Tensor]] = {
    "lt": torch.lt,
    "le": torch.le,
    "gt": torch.gt,
    "ge": torch.ge,
    "eq": torch.eq,
    "ne": torch.ne,
}


def held(dtype: str) -> torch.dtype:
    """Return the torch type that values of a type are held in."""
    if dtype in NARROW:
        return torch.float32
    if dtype in _WORDS:
        return torch.int64
    if dtype not in _TYPES:
        raise Unsupported(f"type {dtype}")
    return _TYPES[dtype]


def stored(dtype: str) -> torch.dtype:
    """Return the torch type of a tensor of that type."""
    return NARROW.get(dtype) or (torch.uint32 if dtype == "uint32" else held(dtype))


def width(dtype: str) -> int:
    """Return the number of bits of an integer type."""
    return int(dtype.removeprefix("u").removeprefix("int"))


def cast(a: Tensor, target: str) -> Tensor:
    """Return a converted value: rounded to nearest between floats, and towards 0 to integers, which wrap."""
    if target in NARROW:
        return a.to(torch.float32).to(NARROW[target]).to(torch.float32)
    value = a.to(held(target))
    return value & _WORDS[target] if target in _WORDS else value


def bits(a: Tensor, source: str, target: str) -> Tensor:
    """Return the bits of a value as another type of the same width."""
    if {source, target} & (set(NARROW) | {"uint64"}):
        raise Unsupported(f"the bits of {source} as {target}")
    raw = a.to(torch.int32) if source == "uint32" else a
    return cast(raw.view(torch.int32), target) if target == "uint32" else raw.view(held(target))


def _popcount(a: Tensor) -> Tensor:
    """Return the number of ones among the low 32 bits."""
    return torch.stack([a.to(torch.int64) >> i & 1 for i in range(32)]).sum(0)


def _clz(a: Tensor) -> Tensor:
    """Return the number of zeros before the first one of 32 bits, which is 32 for 0."""
    word = cast(a, "uint32")
    return 32 - torch.stack([word >> i != 0 for i in range(32)]).sum(0)
