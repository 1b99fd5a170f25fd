"""Valid and invalid calls of an operator, drawn from its contract."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from lemmata.reference.arithmetic import evaluate
from lemmata.reference.contract import Contract, TensorSpec

EDGES = (0, 1, 2, 3, 31, 32, 33, 65)  # around a warp, which is a block of the smallest kernels
MAGNITUDES = (0.1, 1.0, 8.0, 40.0)
VALUES = (0.0, -0.0, 1.0, -1.0, 0.5, 80.0, -80.0)
EXACT = (0.0, -0.0, 1.0, -1.0, 0.5, 2.0)  # products and sums of a few thousand are exact in fp32, in any order
LAYOUTS = ("contiguous", "transposed", "expanded", "sliced", "offset")


@dataclass
class Call:
    """Arguments of one call; what is wrong with them, if anything, is said by error and argument.

    Attributes:
        tensors: those of the contract, in its order.
        statics: the other parameters, in the order of the torch operator.
        dims: the static parameters that are dimensions of the tensors.
    """

    tensors: tuple[Tensor, ...]
    statics: dict[str, float]
    dims: dict[str, float] = field(default_factory=dict)
    label: str = ""
    error: type[Exception] = Exception
    argument: str = ""

    def map(self, function: Callable[[Tensor], Tensor]) -> Call:
        """The call on other tensors."""
        return replace(self, tensors=tuple(map(function, self.tensors)))

    def to(self, device: torch.device | str) -> Call:
        """The call on a device, where other tensors may be."""
        return self.map(lambda t: t.to(device) if isinstance(t, Tensor) and t.device.type == "cpu" else t)


def lay_out(tensor: Tensor, layout: str) -> Tensor:
    """The same values under other strides."""
    poison = torch.nan if tensor.is_floating_point() else 2**31 - 1
    if layout == "transposed" and tensor.ndim > 1:
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "expanded" and tensor.numel():
        return tensor[:1].expand(tensor.shape)
    if layout == "sliced":
        wide = tensor.new_full((*tensor.shape[:-1], tensor.shape[-1] + 3), poison)
        wide[..., 1:-2] = tensor
        return wide[..., 1:-2]
    if layout == "offset":  # contiguous, but no longer at a multiple of 16 bytes
        flat = tensor.new_full((tensor.numel() + 1,), poison)
        flat[1:] = tensor.flatten()
        return flat[1:].view(tensor.shape)
    return tensor


def fill(
    shape: tuple[int, ...], spec: TensorSpec, sizes: Mapping[str, int], seed: int, magnitude: float | tuple[float, ...]
) -> Tensor:
    """Random elements that the contract allows; of a handful of values, ties are common."""
    generator = torch.Generator().manual_seed(seed)
    low, high, dtype = spec.elements.low, spec.elements.high, spec.dtypes[0]
    if spec.elements.distinct:  # of which -1 and those from the size on are none
        count = math.prod(shape)
        some = torch.randperm(max(count, sizes[spec.elements.distinct]) + 2, generator=generator)[:count] - 1
        return some.view(shape).to(dtype)
    if not dtype.is_floating_point:
        low = -3 if low is None else max(low, -30)
        high = max(sizes.values()) + 3 if high is None else sizes[high] if isinstance(high, str) else min(high, 300)
        return torch.randint(low, max(high, low + 1), shape, generator=generator, dtype=dtype)
    if isinstance(magnitude, tuple):
        values = torch.tensor(magnitude)[torch.randint(len(magnitude), shape, generator=generator)]
    else:
        values = (torch.randn(shape, generator=generator) * magnitude).clamp(-80, 80)
    if (low, high) != (None, None):
        values = values.clamp(low, high)
    return (values.abs() if spec.elements.nonnegative else values).to(dtype)


def make(
    contract: Contract,
    configuration: Mapping[str, float],
    sizes: Mapping[str, int],
    seed: int = 0,
    magnitude: float | tuple[float, ...] = 1.0,
    leading: tuple[int, ...] | None = None,
) -> Call:
    """A valid call of these sizes and static parameters."""
    known = {**sizes, **{n: int(v) for n, v in configuration.items()}}
    tensors = []
    for at, spec in enumerate(contract.inputs):
        shape = [sum(evaluate(t, known) if isinstance(t, str) else t for t in dim) for dim in spec.dims]
        if spec.leading:
            shape = [*((sizes[spec.leading],) if leading is None else leading), *shape]
        tensors.append(fill(tuple(shape), spec, sizes, seed + 1000 * at, magnitude))
    dims = {n for spec in contract.inputs for dim in spec.dims for n in dim} & set(configuration)
    return Call(
        tuple(tensors),
        {n: v for n, v in configuration.items() if n not in dims},
        {n: v for n, v in configuration.items() if n in dims},
    )


@st.composite
def calls(
    draw: st.DrawFn,
    contract: Contract,
    configurations: st.SearchStrategy[dict[str, float]],
    exact: bool,
    edges: Mapping[str, tuple[int, ...]],
) -> Call:
    """A valid call: sizes at the edges, any strides, magnitudes to 80, ties."""
    sizes = {name: draw(st.sampled_from(edges.get(name, EDGES))) for name in contract.sizes}
    count = draw(st.sampled_from(EDGES))
    leading = draw(st.sampled_from([(count,), (1, count), (count, 1), (2, count, 1), (0, count)]))
    magnitude = EXACT if exact else draw(st.sampled_from((VALUES, *MAGNITUDES)))
    call = make(contract, draw(configurations), sizes, draw(st.integers(0, 2**16)), magnitude, leading)
    return call.map(lambda t: lay_out(t, draw(st.sampled_from(LAYOUTS))))


def invalid_calls(contract: Contract, good: Call, optional: tuple[str, ...] = ()) -> Iterator[Call]:
    """Every way the contract knows of spoiling a good call; what is optional may be None."""
    bound: set[str | int] = set()
    for at, (spec, tensor) in enumerate(zip(contract.inputs, good.tensors, strict=True)):

        def spoil(value: object, label: str, error: type[Exception], at: int = at, name: str = spec.name) -> Call:
            tensors = (*good.tensors[:at], value, *good.tensors[at + 1 :])
            return replace(good, tensors=tensors, label=label, error=error, argument=name)

        yield spoil(tensor.tolist(), "a list", TypeError)
        if spec.name not in optional:
            yield spoil(None, "nothing", TypeError)
        for dtype in {torch.float64, torch.float16, torch.int32, torch.bool} - set(spec.dtypes):
            yield spoil(tensor.to(dtype), f"{dtype}", TypeError)
        yield spoil(tensor.to_sparse() if tensor.dtype is torch.float32 else [], "not strided", TypeError)
        yield spoil(torch.zeros((), dtype=tensor.dtype), "no dimension", ValueError)
        if spec.dims != ((1,),):
            yield spoil(torch.zeros(len(spec.dims) - 1 or 1, dtype=tensor.dtype), "too few dimensions", ValueError)
        free = contract.sizes.keys() - bound - {n for dim in spec.dims[:-1] for n in dim}
        if not free & set(spec.dims[-1]):
            yield spoil(torch.cat([tensor, tensor[..., :1]], -1), "one dimension longer", ValueError)
        bound |= {n for dim in spec.dims for n in dim}
        for name in {n for dim in spec.dims for n in dim if n in contract.statics}:
            limits = contract.statics[str(name)]
            between = {c + 1 for c in limits.choices} - set(limits.choices)
            for bad in {int(limits.low) - 1, int(limits.high) + 1} | between:
                shape = [bad if d == (name,) else n for d, n in zip(spec.dims[::-1], tensor.shape[::-1], strict=False)]
                shape += [2] if spec.leading else []
                yield spoil(torch.zeros(shape[::-1], dtype=tensor.dtype), f"{name}={bad}", ValueError)
        if at:
            yield spoil(tensor.to("meta"), "another device", ValueError)
    for name in good.statics:
        limits = contract.statics[name]
        step = 1 if limits.kind is int else limits.low / 2
        values = limits.low - step, limits.high + 1, 0, -1, float("nan") if limits.kind is float else -5
        for value in (v for v in values if not limits.admits(v)):
            yield replace(good, statics=good.statics | {name: value}, label=str(value), error=ValueError, argument=name)
        for wrong in ("1", *([] if name in optional else [None]), True, 1.5 if limits.kind is int else 1j):
            yield replace(good, statics=good.statics | {name: wrong}, label=repr(wrong), error=TypeError, argument=name)
