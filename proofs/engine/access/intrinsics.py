"""Intrinsic calls: which are modelled, which are not and are named in the verdict, and which make the engine refuse."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import z3
from tvm import tirx

from ..base.dtypes import bits as element_bits
from ..base.dtypes import fits
from ..base.errors import Unsupported
from ..compiler.instructions import ATOMIC, COLLECTIVE, COUNTS, HARMLESS, MATHEMATICS, does
from ..compiler.nodes import called, passed
from . import tma, wgmma
from .trace import Access, Event, Mode, Region, Variable, value_of

if TYPE_CHECKING:
    from .reading import Reading, Value

_PURE = 1  # TVM's CallEffectKind of a function of its arguments alone; 0 is an annotation
_POINTERS = {"tirx.tvm_access_ptr", "tirx.address_of", "tirx.handle_add_byte_offset"}
_ELECTION = "tl.tl_shuffle_elect"
_METADATA = {"tirx.type_annotation", "tirx.likely", "tirx.large_uint_imm"}

_WARP, _MATRIX_ROWS, _ROW_BITS, _REGISTER_BITS = 32, 8, 128, 32
_BITWISE = re.compile(r"tirx\.(bitwise_(and|or|xor|not)|shift_(left|right))")
_OF_WORDS = {"tirx.bitwise_and": operator.and_, "tirx.bitwise_or": operator.or_, "tirx.bitwise_xor": operator.xor}
_WGMMA: Mapping[str | None, Callable[[Reading, tirx.Call], None]] = {"advance": wgmma.advance, "product": wgmma.product}
_NO_EVENTS = (None, "copy", "atomic", "hint", "publish", "bulk")
# functions that give a bit for each of 32 threads
_MASKS = {f"tl.{name}" for name in ("ballot", "ballot_sync", "activemask", "match_any_sync", "match_all_sync")}
# what an instruction moves through a pointer, None for the extent that the compiler states, and when
Reach = tuple[z3.ArithRef | None, tuple[z3.BoolRef, ...]]


def call(reading: Reading, e: tirx.Call) -> Value:
    """Translate a call; Unsupported if it has an effect that is not known to be harmless to the rest of the proof."""
    name = getattr(e.op, "name", str(e.op))
    if _BITWISE.fullmatch(name) and str(e.dtype) != "bool":
        return _bitwise(reading, e, name)
    if name in _METADATA:
        return reading.value(e.args[0]) if name == "tirx.likely" else None
    if name == _ELECTION:
        return tma.elected(reading, e)
    if name in _POINTERS:
        reading.recorder.unmodelled.add(name)
        _pointer(reading, e, name, collective=False)
        return None
    return _function(reading, e, name)


def _function(reading: Reading, e: tirx.Call, name: str) -> Value:
    effect = e.op.get_attr("TCallEffectKind") if hasattr(e.op, "get_attr") else None
    pure = (effect is not None and int(effect) in (0, _PURE)) or bool(MATHEMATICS.fullmatch(name))
    if not pure and not HARMLESS.fullmatch(name):
        raise Unsupported(f"intrinsic {name}")
    collective = bool(COLLECTIVE.fullmatch(name))
    label = str(e.args[0].value) if name.startswith("tirx.call_") else name
    if does(name) == "bulk" and not (isinstance(e.args[-2], tirx.IntImm) and int(e.args[-2]) == 0):
        label = f"{name} that adds"
    pointers = [a for a in e.args if isinstance(a, tirx.Call) and called(a) in _POINTERS]
    if not pure or pointers or str(e.dtype) == "handle":
        reading.recorder.unmodelled.add(label)
    reaches = iter(_reaches(reading, e, name, pointers))
    numbers: list[Value] = []
    before = len(reading.recorder.accesses)
    for argument in e.args:
        numbers.append(None)
        if any(argument.same_as(p) for p in pointers):
            moved, when = next(reaches)
            with reading.recorder.under(*when):
                _pointer(reading, argument, label, collective, moved)
        elif isinstance(argument, tirx.PrimExpr):
            numbers[-1] = reading.value(argument)
    if does(name) == "describe":
        wgmma.describe(reading, e, *_target(reading, e.args[1]))
    elif does(name) in _WGMMA:
        _WGMMA[does(name)](reading, e)
    elif does(label) == "bulk":
        tma.store(reading, e)
    elif does(name) not in _NO_EVENTS:
        event(reading, e, numbers, reading.recorder.accesses[before:])
    if not pure:
        reading.locals.forget({hash(pointer) for pointer in passed(e)})
        reading.reads.clear()
    source = e.args[0] if name == "tirx.reinterpret" else None
    of_input = isinstance(source, tirx.BufferLoad) and reading.kept(source.buffer)  # whose elements may have any bits
    value = reading.opaque("reinterpret" if of_input else value_of(label), str(e.dtype))
    if isinstance(value, z3.ArithRef) and name in COUNTS:
        reading.recorder.facts.append(z3.And(value >= 0, value <= element_bits(str(e.args[0].dtype))))
    if isinstance(value, z3.ArithRef) and name in _MASKS:
        reading.recorder.facts.append(z3.And(value >= 0, value < 2**32))
    return value


def event(reading: Reading, e: tirx.Call, numbers: Sequence[Value] = (), accesses: Sequence[Access] = ()) -> None:
    """File an instruction that orders accesses."""
    effect, recorder = does(e.op.name), reading.recorder
    assert effect is not None
    data = (a.buffer.data if isinstance(a, tirx.BufferLoad) else a for a in e.args)
    operands = tuple(reading.regions.get(hash(d), (None, 0))[0] if isinstance(d, tirx.Var) else None for d in data)
    reading.reads.clear()
    recorder.block.append(Event(effect, e, tuple(numbers), operands, tuple(accesses), recorder.context))


def _reaches(reading: Reading, e: tirx.Call, name: str, pointers: Sequence[tirx.Call]) -> list[Reach]:
    """Return the reach of each pointer. An asynchronous copy reads its source, the last one, under a condition."""
    if does(name) == "copy":
        moved, when = reading.integer(e.args[2]), tuple(map(reading.boolean, e.args[3:]))
        return [*((moved, ()) for _ in pointers[1:]), (moved, when)]
    if does(name) == "bulk" and len(pointers) == 2:  # a row of bytes, by its address
        width = element_bits(str(pointers[0].args[0].dtype))
        return [(z3.simplify(reading.integer(e.args[2]) * 8 / width), ())] * 2
    if COLLECTIVE.fullmatch(name):
        width, matrices, number = element_bits(str(pointers[0].args[0].dtype)), int(e.args[1]), z3.IntVal(0)
        for axis in reversed([v for v in reading.recorder.variables if v.kind == "thread"]):  # x varies fastest
            single = z3.is_true(z3.simplify(axis.count == 1))
            number = number if single else axis.term + axis.count * number
        named = z3.simplify(number) % _WARP < _MATRIX_ROWS * matrices
        registers = z3.IntVal(_REGISTER_BITS * matrices // width)  # of a thread, one for each matrix
        return [(z3.IntVal(_ROW_BITS // width), (named,)), *((registers, ()) for _ in pointers[1:])]
    several = ATOMIC.fullmatch(name)
    return [(z3.IntVal(int(several[1])) if several and several[1] else None, ())] * len(pointers)


def _pointer(
    reading: Reading, e: tirx.Call, intrinsic: str, collective: bool, moved: z3.ArithRef | None = None
) -> None:
    """File the accesses that an instruction may make through a pointer: the extent that the compiler states, or ``moved``."""
    recorder = reading.recorder
    if e.op.name == "tirx.address_of" and isinstance(load := e.args[0], tirx.BufferLoad):
        indices, region = tuple(map(reading.integer, load.indices)), reading.region(load.buffer)
        recorder.access(Access("read", region, indices, recorder.context, collective, intrinsic))
        return
    region, offset, rest = _target(reading, e)
    mask, extent = int(_moved_on(e)[0].args[4]), rest if moved is None else moved
    within = Variable(recorder.unique("element"), "lane", z3.IntVal(0), extent)
    modes: tuple[tuple[int, Mode], ...] = ((1, "read"), (2, "write"))
    with recorder.over(within):
        for mode in (mode for bit, mode in modes if mask & bit):
            index, name = (offset + within.term,), None if collective else intrinsic
            recorder.access(Access(mode, region, index, recorder.context, collective, name))


def _target(reading: Reading, e: tirx.Call) -> tuple[Region, z3.ArithRef, z3.ArithRef]:
    """Return where a pointer points: the memory, the element, and how many can be reached from there on."""
    e, shift = _moved_on(e)
    if e.op.name != "tirx.tvm_access_ptr":
        raise Unsupported(f"pointer {e.op.name}")
    region = _region_of(reading, e.args[1], e)
    return region, reading.integer(e.args[2]) + shift, reading.integer(e.args[3]) - shift


def _moved_on(e: tirx.Call) -> tuple[tirx.Call, int]:
    """Return a pointer and by how many elements it is moved on. What is left of the extent can still be reached."""
    inner = e.args[0] if e.op.name == "tirx.handle_add_byte_offset" else None
    if not isinstance(inner, tirx.Call) or inner.op.name != "tirx.tvm_access_ptr":
        return e, 0
    size = element_bits(str(inner.args[0].dtype)) // 8
    within = isinstance(e.args[1], tirx.IntImm) and isinstance(inner.args[3], tirx.IntImm) and size > 0
    if not within or int(e.args[1]) % size or not 0 <= int(e.args[1]) < int(inner.args[3]) * size:
        raise Unsupported(f"a pointer moved out of what it points to: {e}")
    return inner, int(e.args[1]) // size


def _region_of(reading: Reading, data: tirx.Var, e: tirx.Call) -> Region:
    """Return the memory that a pointer may reach, in elements of the type that it is taken as."""
    width = element_bits(str(e.args[0].dtype))
    if hash(data) in reading.buffers:
        region = reading.region(reading.buffers[hash(data)])
        if region.bits != width:
            raise Unsupported(f"{data.name} is accessed as another type: {e}")
        return replace(region, shape=(z3.simplify(z3.Product([z3.IntVal(1), *region.shape])),))
    if data.name in reading.hypotheses.shapes:
        return Region(data.name, "global", width, (reading.hypotheses.elements(data.name),), data.name, 0)
    allocation, offset = reading.regions.get(hash(data), ("", 0))
    if allocation not in reading.recorder.shared_bytes or width % 8:
        raise Unsupported(f"pointer into {data.name}, which no buffer declares: {e}")
    extent = (reading.recorder.shared_bytes[allocation] - offset) // (width // 8)
    return Region(data.name, "shared.dyn", width, (z3.IntVal(extent),), allocation, offset)


def _bitwise(reading: Reading, e: tirx.Call, name: str) -> Value:
    dtype = str(e.dtype)
    if name == "tirx.bitwise_not":
        ones = 2 ** element_bits(dtype) - 1 if dtype.startswith("uint") else -1
        return reading.checked(e, ones - reading.integer(e.args[0]))
    a, b = reading.integer(e.args[0]), z3.simplify(reading.integer(e.args[1]))
    constant = b.as_long() if z3.is_int_value(b) else None
    width = element_bits(dtype)
    if name in ("tirx.shift_left", "tirx.shift_right"):
        shifted = operator.truediv if name == "tirx.shift_right" else operator.mul
        if constant is not None and not 0 <= constant < width:
            raise Unsupported(f"shift by {e.args[1]}")
        result = a if constant is None else shifted(a, z3.IntVal(2**constant))
        if constant is None:  # the choice among all amounts that are defined
            reading.recorder.require("overflow", f"{e.args[1]} is less than {width}", z3.And(b >= 0, b < width))
            for amount in range(1, width):
                result = z3.If(b == amount, shifted(a, 2**amount), result)
        return result if name == "tirx.shift_right" else reading.checked(e, result)
    if name == "tirx.bitwise_and" and constant is not None and constant >= 0 and constant & (constant + 1) == 0:
        return a % (constant + 1)  # the low bits, of negative numbers too
    if dtype.startswith("uint"):
        if (known := _masked(name, a, b)) is None:  # a function of both, of which only the range is known
            known = z3.Function(f"{name} {dtype}", z3.IntSort(), z3.IntSort(), z3.IntSort())(a, b)
            most = [known <= a, known <= b] if name == "tirx.bitwise_and" else []
            reading.recorder.facts.append(z3.And(fits(known, dtype), *most))
        return known
    return z3.BV2Int(_OF_WORDS[name](z3.Int2BV(a, width), z3.Int2BV(b, width)), is_signed=True)


def _masked(name: str, a: z3.ArithRef, b: z3.ArithRef) -> z3.ArithRef | None:
    """Return a bitwise operation of natural numbers, one of them a constant or a choice between constants, in integer terms."""
    if not z3.is_int_value(b) and (z3.is_int_value(a) or z3.is_app_of(a, z3.Z3_OP_ITE)):
        a, b = b, a
    if z3.is_app_of(b, z3.Z3_OP_ITE):
        condition, *arms = b.children()
        then, otherwise = (_masked(name, a, arm) for arm in arms)
        return None if then is None or otherwise is None else z3.If(condition, then, otherwise)
    if not z3.is_int_value(b):
        return None
    kept = z3.IntVal(0) if name == "tirx.bitwise_and" else a
    for run in re.finditer("1+", f"{b.as_long():b}"[::-1]):  # the lowest bit first
        low, length = run.start(), len(run[0])
        ones, part = 2**length - 1, a / 2**low % 2**length
        change = {"tirx.bitwise_and": part, "tirx.bitwise_or": ones - part, "tirx.bitwise_xor": ones - 2 * part}[name]
        kept = kept + 2**low * change
    return kept
