"""Stores by TMA: which thread of a group issues one, and which elements of a tensor it writes.

A store moves a box of shared memory to where its coordinates say. A descriptor tells the box's size, and how the tensor's
dimensions lie in memory. What of the box lies outside the tensor is not written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import z3
from tvm import tirx

from ..base.dtypes import bits
from ..base.errors import Unsupported
from ..compiler.nodes import called
from ..smt.bitvectors import subterms
from .reading import Reading
from .trace import Access, Region, Variable

_DESCRIPTOR = "tl.create_tma_descriptor"
_ATOMS = {1: 32, 2: 64, 3: 128}  # bytes of a row that is swizzled, by the kind of swizzle; 0 is none
_WARP = 32
LEADER = z3.Function("leader of a warp", z3.IntSort(), z3.IntSort())
"""The lane that is elected in the warp of a thread: some one, and each time the same."""


def elected(reading: Reading, e: tirx.Call) -> z3.BoolRef:
    """Return whether a thread is the one that its group elects: one lane of the first warp of so many threads.

    Raises:
        Unsupported: the block is not one row of threads, or the groups are no whole warps.
    """
    threads = [v for v in reading.recorder.variables if v.kind == "thread" and not _is(v.count == 1)]
    size = int(e.args[0])
    if len(threads) != 1 or size % _WARP:
        raise Unsupported(f"a leader of {size} threads in a block that is not one row of warps")
    thread, here = threads[0], reading.recorder.context
    if here.guards or any(v.kind == "loop" for v in here.variables):  # else all threads get there
        reading.recorder.elections.append(here)
    whole = size == 0 or _is(thread.count <= size)
    first = z3.IntVal(0) if whole else thread.term / size * size
    return thread.term == first + LEADER(first) % _WARP


def elections(guards: Iterable[Sequence[z3.BoolRef]]) -> tuple[z3.BoolRef, ...]:
    """Return the elections among the guards of some accesses that all of them have."""
    first, *others = guards
    common = (g for g in first if all(any(g.eq(o) for o in other) for other in others))
    return tuple(g for g in common if z3.is_eq(g) and any(t.decl().eq(LEADER) for t in subterms([g])))


def store(reading: Reading, e: tirx.Call) -> None:
    """File the writes of a store through a descriptor; its read of shared memory is filed already.

    Raises:
        Unsupported: it adds to memory, or the descriptor is not of a whole tensor, row after row.
    """
    if not isinstance(e.args[-2], tirx.IntImm) or int(e.args[-2]):
        raise Unsupported(f"a store by TMA that adds: {e}")
    descriptor, recorder = e.args[0], reading.recorder
    if called(descriptor) != _DESCRIPTOR:  # an address, or after lowering a parameter of the kernel
        return
    rank, tensor = int(descriptor.args[1]), descriptor.args[2].name
    dims, strides, boxes, steps = (descriptor.args[3 + rank * n : 3 + rank * (n + 1)] for n in range(4))
    interleave, swizzle, *_ = map(int, descriptor.args[3 + 4 * rank :])
    width, shape = bits(str(e.args[1].args[0].dtype)), reading.hypotheses.shapes[tensor]
    box, moved = [int(b) for b in boxes], z3.simplify(reading.constant(e.args[1].args[3]))
    plain = not interleave and all(int(s) == 1 for s in steps) and len(e.args) == rank + 4 and width % 8 == 0
    packed = swizzle == 0 or _ATOMS.get(swizzle) == box[0] * width // 8
    if not plain or not packed or not _is(z3.Product([z3.IntVal(b) for b in box]) == moved):
        raise Unsupported(f"a store by TMA of a box that does not lie in shared memory row after row: {e}")
    order = dimensions(shape, [reading.constant(d) for d in dims], [reading.constant(s) for s in strides], width // 8)
    lanes = [Variable(recorder.unique("element"), "lane", z3.IntVal(0), z3.IntVal(b)) for b in box]
    with recorder.over(*lanes):
        at = [reading.constant(c) + lane.term for c, lane in zip(e.args[2 : 2 + rank], lanes, strict=True)]
        indices = tuple(z3.simplify(at[k]) for k in order)
        with recorder.under(*(z3.And(i >= 0, i < n) for i, n in zip(indices, shape, strict=True))):
            region = Region(tensor, "global", width, tuple(shape), tensor, 0)
            recorder.access(Access("write", region, indices, recorder.context, intrinsic=e.op.name))


def dimensions(
    shape: Sequence[z3.ArithRef], dims: Sequence[z3.ArithRef], strides: Sequence[z3.ArithRef], size: int
) -> list[int]:
    """Return for each dimension of a tensor which one of a descriptor it is: of the same extent and stride."""
    found: list[int] = []
    for d, extent in enumerate(shape):
        stride = z3.Product([z3.IntVal(size), *shape[d + 1 :]])
        same = (k for k in range(len(dims)) if k not in found and _is(dims[k] == extent) and _is(strides[k] == stride))
        found.append(next(same, -1))
    if -1 in found or len(found) != len(dims):
        raise Unsupported(f"a descriptor of {len(dims)} dimensions {dims} of a tensor of {shape}")
    return found


def _is(statement: z3.BoolRef) -> bool:
    """Return whether a statement about sizes simplifies to true."""
    return z3.is_true(z3.simplify(statement, som=True))
