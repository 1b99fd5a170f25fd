"""Valid and invalid calls of an operator, drawn from its contract."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from lemmata.reference.contract import Contract, Elements, TensorSpec

EDGES = (0, 1, 2, 3, 31, 32, 33, 65)  # around a warp, which is a block of the smallest kernels
VALUES = (0.0, -0.0, 1.0, -1.0, 0.5, 80.0, -80.0)
LAYOUTS = ("contiguous", "transposed", "expanded", "sliced", "offset")


@dataclass
class Call:
    """Arguments of one call; what is wrong with them, if anything, is said by error and argument."""

    tensors: tuple[object, ...]
    statics: dict[str, float]
    label: str = ""
    error: type[Exception] | None = None
    argument: str = ""


def lay_out(tensor: Tensor, layout: str) -> Tensor:
    """The same values under other strides."""
    if layout == "transposed":
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "expanded" and tensor.numel():
        return tensor[:1].expand(tensor.shape)
    if layout == "sliced":
        wide = tensor.new_full((*tensor.shape[:-1], tensor.shape[-1] + 3), torch.nan)
        wide[..., 1:-2] = tensor
        return wide[..., 1:-2]
    if layout == "offset":  # contiguous, but no longer at a multiple of 16 bytes
        flat = tensor.new_full((tensor.numel() + 1,), torch.nan)
        flat[1:] = tensor.flatten()
        return flat[1:].view(tensor.shape)
    return tensor


def fill(shape: tuple[int, ...], spec: TensorSpec, seed: int, magnitude: float, few: bool) -> Tensor:
    """Random elements that the contract allows; `few` draws them from a handful of values, so that ties are common."""
    generator = torch.Generator().manual_seed(seed)
    elements: Elements = spec.elements
    if not spec.dtypes[0].is_floating_point:
        assert isinstance(elements.low, int)
        assert isinstance(elements.high, int)
        return torch.randint(elements.low, elements.high, shape, generator=generator, dtype=spec.dtypes[0])
    if few:
        return torch.tensor(VALUES)[torch.randint(len(VALUES), shape, generator=generator)].to(spec.dtypes[0])
    return (torch.randn(shape, generator=generator) * magnitude).clamp(-80, 80).to(spec.dtypes[0])


def _shape(spec: TensorSpec, sizes: dict[str, int], leading: tuple[int, ...]) -> tuple[int, ...]:
    dims = [sum(sizes[t] if isinstance(t, str) else t for t in dim) for dim in spec.dims]
    return (*(leading if spec.leading else ()), *dims)


@st.composite
def calls(
    draw: st.DrawFn, contract: Contract, statics: st.SearchStrategy[dict[str, float]], device: torch.device
) -> Call:
    """A valid call: sizes at the edges, any strides, magnitudes to 80, ties."""
    params = draw(statics)
    count = draw(st.sampled_from(EDGES))
    leading = draw(st.sampled_from([(count,), (1, count), (count, 1), (2, count, 1), (0, count)]))
    sizes = {name: draw(st.sampled_from(EDGES)) for name in contract.sizes} | params
    tensors = []
    for spec in contract.inputs:
        seed, few = draw(st.integers(0, 2**16)), draw(st.booleans())
        tensor = fill(_shape(spec, sizes, leading), spec, seed, draw(st.sampled_from((0.1, 1.0, 8.0, 40.0))), few).to(
            device
        )
        tensors.append(lay_out(tensor, draw(st.sampled_from(LAYOUTS))))
    dims = {name for spec in contract.inputs for dim in spec.dims for name in dim}
    return Call(tuple(tensors), {k: v for k, v in params.items() if k not in dims})


def invalid_calls(contract: Contract, good: Call) -> Iterator[Call]:
    """Every way the contract knows of spoiling a good call."""
    for at, spec in enumerate(contract.inputs):
        tensor = good.tensors[at]
        assert isinstance(tensor, Tensor)

        def spoil(value: object, label: str, error: type[Exception], at: int = at, name: str = spec.name) -> Call:
            return Call((*good.tensors[:at], value, *good.tensors[at + 1 :]), good.statics, label, error, name)

        yield spoil(tensor.tolist(), "a list", TypeError)
        yield spoil(None, "nothing", TypeError)
        for dtype in {torch.float64, torch.float16, torch.int32, torch.bool} - set(spec.dtypes):
            yield spoil(tensor.to(dtype), f"{dtype}", TypeError)
        yield spoil(torch.zeros((), dtype=tensor.dtype), "no dimension", ValueError)
        yield spoil(torch.zeros(len(spec.dims) - 1 or 1, dtype=tensor.dtype), "too few dimensions", ValueError)
        yield spoil(torch.cat([tensor, tensor], -1), "one dimension doubled", ValueError)
        for name in {n for dim in spec.dims for n in dim if n in contract.statics}:
            limits = contract.statics[name]
            for bad in (int(limits.low) - 1, int(limits.high) + 1):
                shape = [
                    bad if dim == (name,) else extent
                    for dim, extent in zip(spec.dims, tensor.shape[-len(spec.dims) :], strict=True)
                ]
                yield spoil(torch.zeros(2, *shape, dtype=tensor.dtype), f"{name}={bad}", ValueError)
        if at:
            yield spoil(tensor.to("meta"), "another device", ValueError)
    for name in good.statics:
        limits = contract.statics[name]
        step = 1 if limits.kind is int else limits.low / 2
        for value in (limits.low - step, limits.high + 1, 0, -1, float("nan") if limits.kind is float else -5):
            yield Call(good.tensors, good.statics | {name: value}, f"{name}={value}", ValueError, name)
        for value in ("1", None, True, 1.5 if limits.kind is int else 1j):
            yield Call(good.tensors, good.statics | {name: value}, f"{name}={value!r}", TypeError, name)  # type: ignore[dict-item]
