"""Products by wgmma: which bytes of shared memory one reads, when it is over, and that its registers are left alone.

A product is issued by a warpgroup and runs on. It is over at a wait that leaves at most n groups under way, if its own
group is not among the n that were committed last. Until then the registers of its accumulator, and of an operand in
registers, must not be touched but by further products; and none may be issued before ``warpgroup_arrive`` has followed
the last touch. The operands in shared memory lie in blocks of 8 rows of 32, 64 or 128 bytes, swizzled within the block;
whole blocks are taken as read.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

import z3

from ..access.instances import sequent
from ..access.intrinsics import AWAIT_PRODUCT, COMMIT, DESCRIBE, ORDER_REGISTERS, PRODUCT, PRODUCT_OF_REGISTERS
from ..access.trace import Access, Instruction, Region, Variable
from ..base.conditions import Condition
from ..base.errors import Unsupported
from ..contract.hypotheses import Hypotheses
from .timeline import AFTER, BEFORE, INSIDE, Role, Threads

Items = Sequence[Access | Instruction]

PRODUCTS = (PRODUCT, PRODUCT_OF_REGISTERS)
WARPGROUP = 128
_SWIZZLED_ROW = {1: 128, 2: 64, 3: 32}  # bytes, by the layout of a descriptor
_ROWS, _DEPTH = 8, 32  # rows of a block; bytes of a row of an operand along the sum
_UNIT = 16  # bytes, of offsets in descriptors


def covering(product: Instruction, items: Items) -> Instruction | None:
    """The wait at which a product of this part of a role is over, if it is in the same part."""
    later = items[_place(product, items) + 1 :]
    newer = -1  # groups committed after the product's own
    for item in later:
        if isinstance(item, Instruction) and item.name == COMMIT:
            newer += 1
        elif isinstance(item, Instruction) and item.name == AWAIT_PRODUCT and 0 <= _left(item) <= newer:
            return item
    return None


def reads(product: Instruction, items: Items) -> Iterator[Access]:
    """What a product reads of shared memory."""
    shape = re.fullmatch(r"m64n(\d+)k\d+", product.call.args[0].value)
    if not shape:
        raise Unsupported(f"a product of shape {product.call.args[0]}")
    rows, columns = 64, int(shape[1])
    if product.name == PRODUCT:
        yield from _operand(product, items, 6, bool(product.call.args[1]), rows)
        yield from _operand(product, items, 8, bool(product.call.args[2]), columns)
    else:
        yield from _operand(product, items, 7, bool(product.call.args[1]), columns)


def _operand(product: Instruction, items: Items, argument: int, along_sum: bool, extent: int) -> Iterator[Access]:
    """The reads of one operand; ``along_sum`` says that its rows are along the dimension that is summed."""
    described = [
        i
        for i in items[: _place(product, items)]
        if isinstance(i, Instruction) and i.name == DESCRIBE and i.operands[0] == product.operands[argument]
    ]
    if not described:
        raise Unsupported(f"a product whose operands are not known: {product.context.site.text}")
    descriptor = described[-1]
    (pointer,) = (a for a in descriptor.accesses if a.region.shared)
    layout, leading, stride = (int(a) for a in descriptor.call.args[2:5])
    if layout not in _SWIZZLED_ROW:
        raise Unsupported(f"an operand that is not swizzled: {descriptor.context.site.text}")
    row = _SWIZZLED_ROW[layout]
    block = _ROWS * row
    if along_sum:
        offsets = [g * stride * _UNIT for g in range(extent // _ROWS)]
    else:
        panels = -(-2 * extent // row)  # of numbers of 16 bits, the only ones of which this order is admitted
        depth = _DEPTH // 2 // _ROWS
        offsets = [p * leading * _UNIT + g * stride * _UNIT for p in range(panels) for g in range(depth)]
    begin, end = _reach(pointer)
    starts: set[int] = set()
    for moved in _offsets(product, argument + 1, descriptor):
        within = (begin + moved) % block
        if within + (_DEPTH if along_sum else row) > row:
            raise Unsupported(f"an operand that begins within a block: {product.context.site.text}")
        starts |= {begin + moved - within + offset for offset in offsets}
    if min(starts) < begin - begin % block or max(starts) + block > end:
        raise Unsupported(f"a product that reads beyond {pointer.region.name}: {product.context.site.text}")
    for low, high in _runs(sorted(starts), block):
        region = Region(
            pointer.region.name, pointer.region.scope, 8 * (high - low), (z3.IntVal(1),), pointer.region.allocation, low
        )
        yield Access("read", region, (z3.IntVal(0),), product.context)


def _reach(pointer: Access) -> tuple[int, int]:
    """The bytes of the allocation that a descriptor may reach, as the compiler states them."""
    element = pointer.context.variables[-1]
    size = pointer.region.bits // 8
    first = z3.simplify(z3.substitute(pointer.indices[0], (element.term, element.low)))
    count = z3.simplify(element.count)
    if not z3.is_int_value(first) or not z3.is_int_value(count):
        raise Unsupported(f"an operand at a varying place: {pointer.context.site.text}")
    begin = pointer.region.offset + first.as_long() * size
    return begin, begin + count.as_long() * size


def _offsets(product: Instruction, argument: int, descriptor: Instruction) -> Iterator[int]:
    """The values of an offset, in bytes, as the loops since the descriptor go round."""
    known = {v.name for v in descriptor.context.variables}
    loops = [v for v in product.context.variables if v.name not in known]
    for values in itertools.product(*map(_values, loops)):
        pairs = [(v.term, z3.IntVal(value)) for v, value in zip(loops, values, strict=True)]
        offset = z3.simplify(z3.substitute(product.numbers[argument], *pairs))
        if not z3.is_int_value(offset):
            raise Unsupported(f"an operand at a varying place: {product.context.site.text}")
        yield offset.as_long() * _UNIT


def _values(variable: Variable) -> range:
    low, count = z3.simplify(variable.low), z3.simplify(variable.count)
    if not z3.is_int_value(low) or not z3.is_int_value(count):
        raise Unsupported(f"products in a loop over {variable.name}, of varying length")
    return range(low.as_long(), low.as_long() + count.as_long())


def _runs(starts: Sequence[int], block: int) -> Iterator[tuple[int, int]]:
    """Blocks of bytes, as runs that are as long as can be."""
    low = high = starts[0]
    for start in starts:
        if start > high:
            yield low, high
            low = start
        high = max(high, start + block)
    yield low, high


def _place(event: Instruction, items: Items) -> int:
    return next(n for n, item in enumerate(items) if item is event)


def _left(wait: Instruction) -> int:
    """How many groups a wait leaves under way."""
    return int(wait.call.args[0])


def certain(role: Role, threads: Threads) -> None:
    """Check that whether a product is issued, or awaited, is no matter of a condition.

    Raises:
        Unsupported: it is, or a group is committed in a loop within the role's.
    """
    for _, event in role.events(*PRODUCTS, COMMIT, AWAIT_PRODUCT, ORDER_REGISTERS):
        loops = [v for v in event.context.variables if v.kind == "loop" and v is not role.loop]
        if threads.others(event.context, role) or (loops and event.name not in PRODUCTS):
            raise Unsupported(f"products under a condition, or committed in a loop: {event.context.site.text}")


def registers(role: Role, hypotheses: Hypotheses) -> Iterator[Condition]:
    """That products of a role are of whole warpgroups, and that their registers are left alone until they are over."""
    products = [event for _, event in role.events(*PRODUCTS)]
    if not products:
        return
    warpgroups = min(role.threads) % WARPGROUP == 0 == len(role.threads) % WARPGROUP
    whole = warpgroups and max(role.threads) - min(role.threads) + 1 == len(role.threads)
    yield _condition(products[0], f"{role} are whole warpgroups", whole, hypotheses)
    before, inside, after = (role.parts[p] for p in (BEFORE, INSIDE, AFTER))
    touched = [
        *_touched([*before, *inside, *inside, *after]),
        *_touched([*before, *after]),
    ]
    for product in products:
        found = [f"; not so: {error}" for p, error in touched if p is product]
        what = (
            f"registers of this product are touched only after a wait, or before a warpgroup_arrive{''.join(found[:1])}"
        )
        yield _condition(product, what, not found, hypotheses)


def _condition(product: Instruction, what: str, holds: bool, hypotheses: Hypotheses) -> Condition:
    context = product.context
    return sequent("race", what, (*hypotheses.facts, *context.path), z3.BoolVal(holds), context.site)


def _touched(items: Items) -> Iterator[tuple[Instruction, str]]:
    """Products whose registers are touched while they are under way, or before them without a warpgroup_arrive."""
    groups: list[list[Instruction]] = []
    issued: list[Instruction] = []
    arrived = False
    touches: dict[str, str] = {}  # since the last warpgroup_arrive
    for item in items:
        if isinstance(item, Access):
            if item.region.scope.startswith("local"):
                touches[item.region.allocation] = f"a {item} in {item.context.site.text}"
                for product in itertools.chain(issued, *groups):
                    if item.region.allocation in _private(product):
                        yield product, touches[item.region.allocation]
        elif item.name in PRODUCTS:
            issued.append(item)
            yield from ((item, touches[r]) for r in _private(item) if r in touches)
            yield from [] if arrived else [(item, "there is none before it")]
        elif item.name == ORDER_REGISTERS:
            arrived = True
            touches.clear()
        elif item.name == COMMIT:
            groups.append(issued)
            issued = []
        elif item.name == AWAIT_PRODUCT:
            groups = groups[len(groups) - _left(item) :] if _left(item) < len(groups) else groups


def _private(product: Instruction) -> list[str]:
    """The registers of a product: its accumulator, and an operand that is in registers."""
    at = (10,) if product.name == PRODUCT else (5, 9)
    return [name for n in at if (name := product.operands[n]) is not None]
