"""Products by wgmma: which bytes of shared memory and which registers each uses.

An operand lies in shared memory in atoms of 8 rows of 32, 64 or 128 bytes, within which 16-byte pieces are permuted. Its
descriptor says where it begins and how far apart atoms are. What a product reads lies between the first byte of the first
atom that it touches and the last byte of the last one, in each panel of columns. Shared memory begins at a multiple of an
atom's size.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import z3
from tvm import tirx

from ..base.errors import Unsupported
from ..compiler.instructions import PRODUCT_OF_REGISTERS
from .trace import Access, Context, Mode, Region, Variable

if TYPE_CHECKING:
    from .reading import Reading

_ROWS = 8  # of an atom, and of what is swizzled together
_UNIT = 16  # bytes that addresses and strides of a descriptor count
_WIDTHS = {1: 128, 2: 64, 3: 32}  # of a row of an atom, by the kind of layout; 0 is without a swizzle
_Step = tuple[int, z3.ArithRef]  # how many elements on, and how often
_BYTES = {"bf16": 2, "fp16": 2, "tf32": 4, "e4m3": 1, "e5m2": 1, "int8": 1, "uint8": 1}


@dataclass(frozen=True)
class Descriptor:
    """An operand in shared memory."""

    region: Region  # the buffer that it is part of
    start: z3.ArithRef  # where it begins, in bytes from the beginning of the allocation
    width: int | None  # of a row of an atom in bytes, None where the layout has no atoms
    strides: tuple[int, int]  # between atoms, in bytes: along rows (or columns), and along the sum if that comes first
    context: Context  # where the descriptor was made
    used: bool = False  # whether a product has read through it


def describe(reading: Reading, e: tirx.Call, region: Region, offset: z3.ArithRef, reach: z3.ArithRef) -> None:
    """Keep the descriptor of an operand, which begins at an element of a buffer."""
    key, here = hash(e.args[0].buffer.data), reading.recorder.context
    before = reading.descriptors.get(key)
    if before and before.used and _within(before.context, here) and not _within(here, before.context):
        raise Unsupported(f"a descriptor made again in a loop that uses it: {e}")
    layout, leading, stride = (int(a) for a in e.args[2:5])
    start = region.offset + offset * (region.bits // 8)
    strides = leading * _UNIT, stride * _UNIT
    reading.descriptors[key] = Descriptor(region, start, _WIDTHS.get(layout), strides, here)


def advance(reading: Reading, e: tirx.Call) -> None:
    """Move a descriptor on by some bytes."""
    key, here = hash(e.args[0].buffer.data), reading.recorder.context
    known = reading.descriptors.get(key)
    if known is None or known.used or not (_within(known.context, here) and _within(here, known.context)):
        raise Unsupported(f"a descriptor moved elsewhere than where it is made: {e}")
    moved = reading.integer(e.args[1]) / _UNIT * _UNIT
    reading.descriptors[key] = replace(known, start=known.start + moved)


def product(reading: Reading, e: tirx.Call) -> None:
    """Place what one product does: it reads its operands, and reads and writes the registers of its result."""
    shape = re.fullmatch(r"m(\d+)n(\d+)k(\d+)", e.args[0].value)
    if shape is None:
        raise Unsupported(f"a product of shape {e.args[0].value}")
    m, n, k = map(int, shape.groups())
    if e.op.name == PRODUCT_OF_REGISTERS:
        operands, result = [(n, e.args[1], e.args[3], 7)], 9
        _registers(reading, e, "read", 5)
    else:
        operands, result = [(m, e.args[1], e.args[3], 6), (n, e.args[2], e.args[4], 8)], 10
    for rows, contiguous, dtype, at in operands:
        if dtype.value not in _BYTES:
            raise Unsupported(f"a product of {dtype.value}")
        bytes_ = k * _BYTES[dtype.value] if bool(contiguous) else rows * _BYTES[dtype.value]
        _operand(reading, e, at, (rows if bool(contiguous) else k, bytes_, bool(contiguous)))
    _registers(reading, e, "write", result)


def _registers(reading: Reading, e: tirx.Call, mode: Mode, at: int) -> None:
    """Place a use of the registers of an operand or of the result, all of the buffer."""
    buffer = reading.buffers[hash(e.args[at])]
    region = reading.region(buffer)
    if len(region.shape) != 1:
        raise Unsupported(f"registers {buffer.name} of more than one dimension")
    _place(reading, e, (mode, region, z3.IntVal(0)), ((1, region.shape[0]),))


def _operand(reading: Reading, e: tirx.Call, at: int, rows_of: tuple[int, int, bool]) -> None:
    """Place a read of rows of contiguous bytes, contiguous along the sum or across it."""
    rows, bytes_, along_sum = rows_of
    key, here = hash(e.args[at]), reading.recorder.context
    known = reading.descriptors.get(key)
    if known is None or not _within(known.context, here):
        raise Unsupported(f"a product through a descriptor made elsewhere: {e}")
    reading.descriptors[key] = replace(known, used=True)
    if known.width is None:
        total = z3.IntVal(reading.recorder.shared_bytes[known.region.allocation])
        whole = replace(known.region, bits=8, shape=(total,), offset=0)
        _place(reading, e, ("read", whole, z3.IntVal(0)), ((1, total),))
        return
    size = z3.Product([z3.IntVal(known.region.bits // 8), *known.region.shape])
    region = replace(known.region, bits=8, shape=(z3.simplify(size),))
    if along_sum and bytes_ > known.width:
        raise Unsupported(f"a product of rows that are wider than an atom: {e}")
    atom, (leading, stride) = _ROWS * known.width, known.strides
    start = known.start + reading.integer(e.args[at + 1]) * _UNIT
    panels = 1 if along_sum else -(-bytes_ // known.width)
    span = (-(-rows // _ROWS) - 1) * stride + atom
    if leading == span:  # one panel follows the other
        panels, span = 1, panels * span
    room = known.width - bytes_ if along_sum else 0  # from where on it does not reach into one more atom
    extent = z3.If(start % atom <= room, z3.IntVal(span), z3.IntVal(span + atom))
    first = z3.simplify(start / atom * atom - region.offset)
    _place(reading, e, ("read", region, first), ((leading, z3.IntVal(panels)), (1, extent)))


def _place(reading: Reading, e: tirx.Call, begin: tuple[Mode, Region, z3.ArithRef], steps: Sequence[_Step]) -> None:
    """Place an access that begins at an element and goes on in steps of some size, so often."""
    recorder, (mode, region, index) = reading.recorder, begin
    steps = [(by, count) for by, count in steps if by == 1 or not z3.is_true(z3.simplify(count == 1))]
    lanes = [Variable(recorder.unique("element"), "lane", z3.IntVal(0), count) for _, count in steps]
    with recorder.over(*lanes):
        for (by, _), lane in zip(steps, lanes, strict=True):
            index = index + by * lane.term
        recorder.place(Access(mode, region, (z3.simplify(index),), recorder.context, intrinsic=e.op.name))


def _within(outer: Context, inner: Context) -> bool:
    """Return whether each run through the inner place is part of one run through the outer."""
    variables = [v.name for v in outer.variables] == [v.name for v in inner.variables[: len(outer.variables)]]
    guards = len(outer.guards) <= len(inner.guards)
    return variables and guards and all(a.eq(b) for a, b in zip(outer.guards, inner.guards, strict=False))
