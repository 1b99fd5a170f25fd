"""Stores by TMA: which thread of a group issues one, and which elements of a tensor it writes.

A store moves a box of shared memory to where its coordinates say. A descriptor tells the box's size, and how the tensor's
dimensions lie in memory. What of the box lies outside the tensor is not written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import z3
from tvm import tirx

from ..base.dtypes import bits
from ..compiler.nodes import called
from .instances import names, symbols
from .trace import Access, Context, Region, Variable

if TYPE_CHECKING:
    from .reading import Reading, Value

_DESCRIPTOR = "tl.create_tma_descriptor"
_ATOMS = {1: 32, 2: 64, 3: 128}  # bytes of a row that is swizzled, by the kind of swizzle; 0 is none
_WARP = 32
# the lane that is elected in the warp of a thread: some one, and each time the same
LEADER = z3.Function("leader of a warp", z3.IntSort(), z3.IntSort())


def elected(reading: Reading, e: tirx.Call) -> Value:
    """Return whether a thread is the one that its group elects: one lane of the first warp of so many threads.

    In a block that is not one row of threads, or where groups are no whole warps, that may be anything.
    """
    recorder, size = reading.recorder, int(e.args[0])
    threads = [v for v in recorder.variables if v.kind == "thread" and not _is(v.count == 1)]
    if len(threads) != 1 or size % _WARP:
        return reading.opaque("elected", str(e.dtype))
    thread, here = threads[0], recorder.context
    if here.guards or any(v.kind == "loop" for v in here.variables):  # else all threads get there
        recorder.elections.append(here)
    whole = size == 0 or _is(thread.count <= size)
    first = z3.IntVal(0) if whole else thread.term / size * size
    return thread.term == first + LEADER(first) % _WARP


def elections(places: Sequence[Context]) -> tuple[z3.BoolRef, ...]:
    """Return the guards that all of some places have, and that tell by an election and the thread's number alone."""
    threads = {v.name for v in places[0].variables if v.kind == "thread"}
    common = (g for g in places[0].guards if all(any(g.eq(o) for o in place.guards) for place in places))
    told = (g for g in common if any(s.eq(LEADER) for s in symbols([g])))
    return tuple(g for g in told if names([g]) <= threads)


def store(reading: Reading, e: tirx.Call) -> None:
    """File the writes of a store through a descriptor; what it does by addresses is filed already.

    One whose descriptor is not of a whole tensor, row after row, is named as not modelled.
    """
    if called(e.args[0]) != _DESCRIPTOR:  # which becomes a parameter of the kernel by lowering
        return
    recorder, found = reading.recorder, _box(reading, e)
    if found is None:
        recorder.unmodelled.add(f"{e.op.name} to a tensor that is not row after row")
        return
    region, box, order = found
    lanes = [Variable(recorder.unique("element"), "lane", z3.IntVal(0), z3.IntVal(b)) for b in box]
    with recorder.over(*lanes):  # of the coordinates that the store gives, the fastest comes first
        at = [reading.constant(c) + lane.term for c, lane in zip(e.args[2 : 2 + len(box)], lanes, strict=True)]
        indices = tuple(z3.simplify(at[k]) for k in order)
        with recorder.under(*(z3.And(i >= 0, i < n) for i, n in zip(indices, region.shape, strict=True))):
            recorder.access(Access("write", region, indices, recorder.context, intrinsic=e.op.name))


def _box(reading: Reading, e: tirx.Call) -> tuple[Region, list[int], list[int]] | None:
    """Return the tensor, the box, and for each dimension of the tensor its place among the box's; None if it is another."""
    descriptor, width = e.args[0], bits(str(e.args[1].args[0].dtype))
    rank, tensor = int(descriptor.args[1]), descriptor.args[2].name
    dims, strides, boxes, steps = (descriptor.args[3 + rank * n : 3 + rank * (n + 1)] for n in range(4))
    interleave, swizzle, *_ = map(int, descriptor.args[3 + 4 * rank :])
    box, moved, shape = [int(b) for b in boxes], reading.constant(e.args[1].args[3]), reading.hypotheses.shapes[tensor]
    plain = not interleave and all(int(s) == 1 for s in steps) and len(e.args) == rank + 4 and width % 8 == 0
    packed = swizzle == 0 or _ATOMS.get(swizzle) == box[0] * width // 8
    if not plain or not packed or not _is(moved == math.prod(box)):
        return None
    order = dimensions(shape, [reading.constant(d) for d in dims], [reading.constant(s) for s in strides], width // 8)
    return None if order is None else (Region(tensor, "global", width, tuple(shape), tensor, 0), box, order)


def dimensions(
    shape: Sequence[z3.ArithRef], dims: Sequence[z3.ArithRef], strides: Sequence[z3.ArithRef], size: int
) -> list[int] | None:
    """Return for each dimension of a tensor which one of a descriptor it is, of the same extent and stride; None if not so."""
    found: list[int] = []
    for d, extent in enumerate(shape):
        stride = z3.Product([z3.IntVal(size), *shape[d + 1 :]])
        same = (k for k in range(len(dims)) if k not in found and _is(dims[k] == extent) and _is(strides[k] == stride))
        found.append(next(same, -1))
    return None if -1 in found or len(found) != len(dims) else found


def _is(statement: z3.BoolRef) -> bool:
    """Return whether a statement about sizes simplifies to true."""
    return bool(z3.is_true(z3.simplify(statement, som=True)))
