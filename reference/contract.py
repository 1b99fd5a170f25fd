"""Contracts: what an operator takes and returns, declared once.

The same declaration is the argument check of the bindings, the generator of valid and invalid inputs in the tests, and
the set of hypotheses of the proofs. Shapes are strings in jaxtyping's notation: ``"*count n n"`` is any number of leading
dimensions whose product is the size ``count``, then two equal dimensions; ``"B P+S D"`` adds sizes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Size:
    """A size known only at run time: any integer from ``low`` to ``high``, both included."""

    low: int = 0
    high: int = 2**31 - 1


@dataclass(frozen=True)
class Static:
    """A parameter fixed when a kernel is built: any ``kind`` from ``low`` to ``high``, both included."""

    kind: type[int] | type[float]
    low: float
    high: float

    def check(self, name: str, value: object) -> None:
        """Raise TypeError or ValueError, in one line, unless ``value`` is admissible."""
        if isinstance(value, bool) or not isinstance(value, (self.kind, int)):
            raise TypeError(f"{name}: expected {self.kind.__name__}, got {type(value).__name__}")
        if not self.low <= value <= self.high:  # NaN fails too
            raise ValueError(f"{name}: expected a value in [{self.low:g}, {self.high:g}], got {value!r}")


@dataclass(frozen=True)
class Elements:
    """What the elements of a tensor may hold: ``low <= x < high`` for integers, finite numbers or any for floats.

    ``high`` may name a size. Elements are hypotheses of the proofs and inputs of the tests; no binding reads a tensor's
    data to check them.
    """

    low: int | None = None
    high: int | str | None = None
    finite: bool = False


@dataclass(frozen=True)
class TensorSpec:
    """One tensor: its name, its shape in jaxtyping's notation, the dtypes it may have and what its elements may be."""

    name: str
    shape: str
    dtypes: tuple[torch.dtype, ...]
    elements: Elements = field(default_factory=Elements)

    @cached_property
    def leading(self) -> str | None:
        """The size that the free leading dimensions multiply to, if the shape begins with ``*``."""
        first = self.shape.split()[0]
        return first[1:] if first.startswith("*") else None

    @cached_property
    def dims(self) -> tuple[tuple[int | str, ...], ...]:
        """The trailing dimensions, each a sum of integers and size names."""
        words = self.shape.split()[1:] if self.leading else self.shape.split()
        return tuple(tuple(int(t) if t.isdigit() else t for t in word.split("+")) for word in words)

    @cached_property
    def pretty(self) -> str:
        """The shape as an error message shows it."""
        words = ["..." if w.startswith("*") else w for w in self.shape.split()]
        return f"[{', '.join(words)}]"


_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class Contract:
    """What one kernel, and the operator over it, takes and returns.

    Args:
        op: the operator's name; it begins every error message.
        sizes: the run-time sizes, by the names that the shapes and the kernel's symbolic dimensions use.
        statics: the build-time parameters. One that is a dimension is read off the shapes.
        inputs: the tensors read, in the order of the call.
        outputs: the tensors written.
    """

    op: str
    sizes: Mapping[str, Size]
    statics: Mapping[str, Static]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        for spec in self.inputs + self.outputs:
            unknown = {n for n in _IDENTIFIER.findall(spec.shape) if n not in self.sizes and n not in self.statics}
            if unknown:
                raise ValueError(f"{self.op}: shape {spec.shape!r} of {spec.name} uses undeclared {sorted(unknown)}")

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Inputs, then outputs."""
        return self.inputs + self.outputs

    def tensor(self, name: str) -> TensorSpec:
        """The tensor of that name."""
        return next(spec for spec in self.tensors if spec.name == name)

    def check(self, *tensors: Tensor, **statics: float) -> dict[str, int]:
        """Check the inputs and the static parameters of a call.

        Returns:
            The sizes, and the statics that are dimensions, read off the shapes.

        Raises:
            TypeError: an argument is not a tensor, or has the wrong dtype or kind.
            ValueError: a shape, a value or a device does not fit. One line: the argument, what was expected, what came.
        """
        bound: dict[str, int] = {}
        for spec, tensor in zip(self.inputs, tensors, strict=True):
            self._check_tensor(spec, tensor, tensors[0], bound)
        for name, value in statics.items():
            self.statics[name].check(f"{self.op}: {name}", value)
        return bound

    def _check_tensor(self, spec: TensorSpec, tensor: Tensor, first: Tensor, bound: dict[str, int]) -> None:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{self.op}: {spec.name}: expected a tensor, got {type(tensor).__name__}")
        if tensor.dtype not in spec.dtypes:
            expected = " or ".join(str(d).removeprefix("torch.") for d in spec.dtypes)
            raise TypeError(f"{self.op}: {spec.name}: expected {expected}, got {str(tensor.dtype).removeprefix('torch.')}")
        if tensor is not first and tensor.device != first.device:
            raise ValueError(f"{self.op}: {spec.name}: expected device {first.device}, got {tensor.device}")
        shape, dims = tensor.shape, spec.dims
        free = len(shape) - len(dims)
        if free < 0 or (free and not spec.leading):
            raise self._bad_shape(spec, shape)
        if spec.leading:
            self._bind(spec, shape, spec.leading, shape[:free].numel(), bound)
        for dim, extent in zip(dims, shape[free:], strict=True):
            names = [t for t in dim if isinstance(t, str) and t not in bound]
            known = sum(bound[t] if isinstance(t, str) else t for t in dim if t not in names)
            if len(names) == 1:
                self._bind(spec, shape, names[0], extent - known, bound)
            elif extent != known:
                raise self._bad_shape(spec, shape)

    def _bind(self, spec: TensorSpec, shape: torch.Size, name: str, extent: int, bound: dict[str, int]) -> None:
        if name in bound:
            if bound[name] != extent:
                raise self._bad_shape(spec, shape)
            return
        limits = self.sizes[name] if name in self.sizes else self.statics[name]
        if not limits.low <= extent <= limits.high:
            raise self._bad_shape(spec, shape, f" with {name} in [{limits.low:g}, {limits.high:g}]")
        bound[name] = extent

    def _bad_shape(self, spec: TensorSpec, shape: torch.Size, more: str = "") -> ValueError:
        return ValueError(f"{self.op}: {spec.name}: expected shape {spec.pretty}{more}, got {list(shape)}")
