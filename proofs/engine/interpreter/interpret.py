"""The interpreter: the semantics read with numbers, on the CPU (``lanes``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .arithmetic import stored
from .lanes import Fault, Lanes
from .machine import NumericMachine
from .ordering import Ordering

__all__ = ["Fault", "interpret"]


def interpret(
    prim_func: Any,
    *tensors: Tensor,
    outputs: Sequence[str] | None = None,
    races: bool = False,
    longest: int | None = None,
) -> None:
    """Run a kernel on CPU tensors, one for each parameter, and fill its outputs in place.

    Args:
        prim_func: the kernel, as its factory returns it or after the launch has been materialised.
        tensors: contiguous tensors of the kernel's types; symbolic dimensions are taken from their shapes.
        outputs: parameters to be filled completely; by default those that the kernel writes and does not read. They
            count as uninitialised at the start.
        races: find those between the threads of a block on these inputs; the kernel may have no tile operations.
        longest: the iterations that no sequential loop exceeds.

    Raises:
        Fault: an access out of bounds, a read of uninitialised memory, an output element left unwritten, an integer
            division by 0 or shift by the whole width, two lanes that write different values to one element, a barrier
            or an exchange within a warp that some threads do not reach, a race, a loop longer than ``longest``.
        Unsupported: the kernel is outside of what is modelled.
        TypeError: a tensor has the wrong type.
        ValueError: a tensor has the wrong shape.
    """
    buffers = list(prim_func.buffer_map.values())
    sizes = _bind(buffers, tensors)
    lanes = Lanes(Ordering() if races else None, longest)
    machine = NumericMachine(lanes, prim_func, {n: torch.tensor(v) for n, v in sizes.items()})
    memories = machine.parameters()
    written = _outputs(prim_func) if outputs is None else set(outputs)
    for name, tensor in zip((str(b.name) for b in buffers), tensors, strict=True):
        lanes.attach(memories[name], tensor, initialised=name not in written)
    machine.run()
    for name, tensor in zip((str(b.name) for b in buffers), tensors, strict=True):
        lanes.detach(memories[name], tensor, output=name in written)


def _bind(buffers: Sequence[Any], tensors: Sequence[Tensor]) -> dict[str, int]:
    """Return the sizes of the symbolic dimensions. Raise if a type or a shape is wrong."""
    sizes: dict[str, int] = {}
    if len(buffers) != len(tensors):
        raise ValueError(f"expected {len(buffers)} tensors, got {len(tensors)}")
    for buffer, tensor in zip(buffers, tensors, strict=True):
        dtype = stored(str(buffer.dtype))
        if tensor.dtype != dtype:
            raise TypeError(f"{buffer.name}: expected {dtype}, got {tensor.dtype}")
        if tensor.ndim != len(buffer.shape) or not tensor.is_contiguous():
            raise ValueError(f"{buffer.name}: expected a contiguous tensor of {len(buffer.shape)} dimensions")
        for dim, extent in zip(buffer.shape, tensor.shape, strict=True):
            wanted = sizes.setdefault(str(dim.name), extent) if hasattr(dim, "name") else int(dim)
            if wanted != extent:
                raise ValueError(f"{buffer.name}: expected {wanted} along {dim}, got {extent}")
    return sizes


def _outputs(prim_func: Any) -> set[str]:
    """Return the parameters that the kernel writes and does not read."""
    from tvm import tirx

    stored: set[str] = set()
    loaded: set[str] = set()

    def visit(node: Any) -> None:
        if isinstance(node, tirx.BufferStore):
            stored.add(str(node.buffer.name))
        elif isinstance(node, tirx.Call) and str(node.op.name) == "tl.region":
            access = int(node.args[1])  # 1 reads, 2 writes, 3 does both
            name = str(node.args[0].buffer.name)
            regions.append(node.args[0])
            if access & 1:
                loaded.add(name)
            if access & 2:
                stored.add(name)
        elif isinstance(node, tirx.BufferLoad) and not any(node.same_as(r) for r in regions):
            loads.append(node)

    regions: list[Any] = []
    loads: list[Any] = []
    tirx.stmt_functor.post_order_visit(prim_func.body, visit)
    loaded |= {str(n.buffer.name) for n in loads if not any(n.same_as(r) for r in regions)}
    parameters = {str(b.name) for b in prim_func.buffer_map.values()}
    return (stored - loaded) & parameters
