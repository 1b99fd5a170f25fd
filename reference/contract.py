"""Contracts: what an operator takes and returns, declared once.

The same declaration is the argument check of the bindings, the generator of valid and invalid inputs in the tests, and
the set of hypotheses of the proofs. Shapes are strings in jaxtyping's notation: ``"*count n n"`` is any number
of leading dimensions whose product is the size ``count``, then two equal dimensions; ``"B P+S D"`` adds sizes.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from . import arithmetic


@dataclass(frozen=True)
class Size:
    """A size known only at run time: any integer from ``low`` to ``high``, both included."""

    low: int = 0
    high: int = 2**31 - 1

    def admits(self, value: int) -> bool:
        """Return whether the size may have this value."""
        return self.low <= value <= self.high

    @property
    def pretty(self) -> str:
        """The admissible values as an error message shows them."""
        return f"[{self.low}, {self.high}]"


@dataclass(frozen=True)
class Static:
    """A parameter fixed when a kernel is built: any ``kind`` from ``low`` to ``high``, both included, or the choices."""

    kind: type[int] | type[float]
    low: float
    high: float
    choices: tuple[int, ...] = ()

    @classmethod
    def one_of(cls, *choices: int) -> Static:
        """Return an integer that must be one of these."""
        return cls(int, min(choices), max(choices), choices)

    def admits(self, value: float) -> bool:
        """Return whether the parameter may have this value; NaN it may not."""
        return value in self.choices if self.choices else self.low <= value <= self.high

    @property
    def pretty(self) -> str:
        """The admissible values as an error message shows them."""
        if self.choices:
            return f"{{{', '.join(map(str, self.choices))}}}"
        return f"[{self.low}, {self.high}]" if self.kind is int else f"[{self.low:g}, {self.high:g}]"

    def check(self, name: str, value: object) -> None:
        """Raise TypeError or ValueError, in one line, unless ``value`` is admissible."""
        if isinstance(value, bool) or not isinstance(value, (self.kind, int)):
            raise TypeError(f"{name}: expected {self.kind.__name__}, got {type(value).__name__}")
        if not self.admits(value):
            raise ValueError(f"{name}: expected a value in {self.pretty}, got {value!r}")


@dataclass(frozen=True)
class Elements:
    """What the elements of a tensor may hold: ``low <= x < high`` for integers.

    For floats: ``low <= x <= high``, finite, nonnegative or any. ``high`` of integers may name a size. ``distinct`` names a
    size: of the integers from 0 to below it none comes twice; others may. Elements are hypotheses of the proofs and inputs of
    the tests; no binding reads a tensor's data to check them.
    """

    low: int | None = None
    high: int | str | None = None
    finite: bool = False
    nonnegative: bool = False
    distinct: str | None = None


@dataclass(frozen=True)
class TensorSpec:
    """One tensor: its name, its shape in jaxtyping's notation, the dtypes it may have and what its elements may be.

    One that the host reads may be on the CPU wherever the others are.
    """

    name: str
    shape: str
    dtypes: tuple[torch.dtype, ...]
    elements: Elements = field(default_factory=Elements)
    host: bool = False

    @cached_property
    def leading(self) -> str | None:
        """The size that the free leading dimensions multiply to, if the shape begins with ``*``."""
        first = self.shape.split()[0]
        return first[1:] if first.startswith("*") else None

    @cached_property
    def dims(self) -> tuple[tuple[int | str, ...], ...]:
        """The trailing dimensions, each a sum of integers and size names, or one other piece of arithmetic."""
        words = self.shape.split()[1:] if self.leading else self.shape.split()
        sums = (word.split("+") if re.fullmatch(_DIM, word) else [word] for word in words)
        return tuple(tuple(int(t) if t.isdigit() else t for t in terms) for terms in sums)

    @cached_property
    def pretty(self) -> str:
        """The shape as an error message shows it."""
        words = ["..." if w.startswith("*") else w for w in self.shape.split()]
        return f"[{', '.join(words)}]"


_RAGGED = 1009  # a prime: no multiple of any tile
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
_TERM = r"(?:[A-Za-z_]\w*|\d+)"
_DIM = rf"{_TERM}(?:\+{_TERM})*"
_SHAPE = re.compile(r"(?:\*[A-Za-z_]\w*|[^*\s]\S*)(?:\s+[^*\s]\S*)*")


def _is_derived(term: int | str) -> bool:
    """Return whether a term of a dimension is more than a number or a name."""
    return isinstance(term, str) and not term.isidentifier()


def _is_arithmetic(word: str) -> bool:
    try:
        return bool(arithmetic.names(word)) or word.isdigit()
    except ValueError:
        return False


IN_TORCH = {"float8_e4m3": "float8_e4m3fn", "float4_e2m1fn": "float4_e2m1fn_x2"}
"""TileLang's names of dtypes that torch names otherwise."""

_PLAIN = {Tensor, torch.nn.Parameter}  # the sizes of other subclasses may be symbolic: hashing would fix them
_Described = tuple[type, torch.Size, torch.dtype, torch.device, torch.layout]  # all that a check looks at in a tensor
_described_plain: Callable[[Tensor], _Described] = operator.attrgetter(
    "__class__", "shape", "dtype", "device", "layout"
)


@dataclass(frozen=True, eq=False)
class Contract:
    """What one kernel, and the operator over it, takes and returns.

    Args:
        op: the operator's name; it begins every error message.
        sizes: the run-time sizes, by the names that the shapes and the kernel's symbolic dimensions use.
        statics: the build-time parameters. One that is a dimension is read off the shapes.
        inputs: the tensors read, in the order of the call.
        outputs: the tensors written.
        probes: sizes that the contract must admit, lest proofs under it say nothing: a ragged call and the largest one
            advertised.
        relations: what holds between sizes, such as ``"tokens % 128 == 0"``.
        updated: the outputs of which elements may keep what they held before.
    """

    op: str
    sizes: Mapping[str, Size]
    statics: Mapping[str, Static]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    probes: tuple[Mapping[str, int], ...] = ()
    relations: tuple[str, ...] = ()
    updated: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for names, kind in ((self.sizes, Size), (self.statics, Static)):
            for name, value in names.items():
                if not isinstance(value, kind):
                    raise TypeError(f"{self.op}: {name}: expected a {kind.__name__}, got {value!r}")
        for spec in self.tensors:
            self._check_spec(spec)
        for specs in (self.inputs, self.outputs):  # a tensor that is added to is both
            if twice := [name for name, count in Counter(spec.name for spec in specs).items() if count > 1]:
                raise ValueError(f"{self.op}: expected a name for each tensor, got {', '.join(twice)} twice")
        for relation in self.relations:
            if unknown := arithmetic.names(relation) - {*self.sizes, *self.statics}:
                raise ValueError(f"{self.op}: relation {relation!r} uses undeclared {sorted(unknown)}")
        if strange := {*self.updated} - {spec.name for spec in self.outputs}:
            raise ValueError(f"{self.op}: updated: expected names of outputs, got {sorted(strange)}")

    def _check_spec(self, spec: TensorSpec) -> None:
        """Raise TypeError or ValueError, in one line, unless the notation of a tensor is right and its sizes declared."""
        if not _SHAPE.fullmatch(spec.shape) or not all(map(_is_arithmetic, spec.shape.lstrip("*").split())):
            expected = "names, numbers and arithmetic of them between spaces, the first perhaps *name"
            raise ValueError(f"{self.op}: {spec.name}: expected a shape of {expected}, got {spec.shape!r}")
        if not (isinstance(spec.dtypes, tuple) and spec.dtypes and {*map(type, spec.dtypes)} == {torch.dtype}):
            raise TypeError(f"{self.op}: {spec.name}: expected a tuple of torch dtypes, got {spec.dtypes!r}")
        unknown = {n for n in _IDENTIFIER.findall(spec.shape) if n not in self.sizes and n not in self.statics}
        if unknown:
            raise ValueError(f"{self.op}: shape {spec.shape!r} of {spec.name} uses undeclared {sorted(unknown)}")
        if isinstance(spec.elements.high, str) and spec.elements.high not in self.sizes:
            raise ValueError(f"{self.op}: {spec.name}: expected elements below a size, got {spec.elements.high!r}")
        if spec.elements.distinct not in (None, *self.sizes) or (
            spec.elements.distinct and spec.dtypes[0].is_floating_point
        ):
            raise ValueError(
                f"{self.op}: {spec.name}: expected distinct integers below a size, got {spec.elements.distinct!r}"
            )

    @classmethod
    def of(
        cls,
        kernel: Any,
        *,
        sizes: Mapping[str, Size],
        outputs: Collection[str],
        elements: Mapping[str, Elements] = MappingProxyType({}),
        probes: tuple[Mapping[str, int], ...] = (),
        relations: tuple[str, ...] = (),
        updated: Collection[str] = (),
    ) -> Contract:
        """Return the contract that a TileLang kernel states itself: its tensors in its order, their shapes and dtypes.

        Args:
            kernel: the PrimFunc, or a function decorated with ``@tilelang.jit`` whose parameters have defaults.
            sizes: its symbolic dimensions, by name.
            outputs: the names of the tensors that it writes.
            elements: what the elements of inputs may be, by name; anything by default.
            probes: by default every size about 1000 above its least, and every size at its largest.
            relations: what holds between sizes, such as ``"tokens % 128 == 0"``.
            updated: the names of further tensors that it writes, of which elements may keep what they held before.

        Raises:
            ValueError: a dimension is no arithmetic of sizes, torch has no such dtype, or a name is that of no tensor.
        """
        kernel = kernel.get_tir() if hasattr(kernel, "get_tir") else kernel
        op, specs = str(kernel.attrs["global_symbol"]), {}
        for buffer in kernel.buffer_map.values():
            name, dtype = str(buffer.name), getattr(torch, IN_TORCH.get(str(buffer.dtype), str(buffer.dtype)), None)
            if not isinstance(dtype, torch.dtype):
                raise ValueError(f"{op}: {name}: expected a dtype of torch, got {buffer.dtype}")
            shape = " ".join(str(dim).replace(" ", "") for dim in buffer.shape)
            specs[name] = TensorSpec(name, shape, (dtype,), elements.get(name, Elements()))
        outputs = (*outputs, *updated)
        if unknown := sorted({*outputs, *elements} - {*specs}):
            raise ValueError(f"{op}: expected names among {', '.join(specs)}, got {', '.join(unknown)}")
        usual = {name: min(size.low + _RAGGED, size.high) for name, size in sizes.items()}
        largest = {name: size.high for name, size in sizes.items()}
        inputs = tuple(spec for name, spec in specs.items() if name not in outputs)
        written = tuple(specs[name] for name in outputs)
        return cls(op, sizes, {}, inputs, written, probes or (usual, largest), relations, tuple(updated))

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Inputs, then outputs."""
        return self.inputs + self.outputs

    def tensor(self, name: str) -> TensorSpec:
        """Return the tensor of that name."""
        return next(spec for spec in self.tensors if spec.name == name)

    def check(self, *tensors: Tensor, **statics: float) -> Mapping[str, int]:
        """Check the inputs and the static parameters of a call. Calls alike are checked once.

        Returns:
            The sizes, and the statics that are dimensions, read off the shapes.

        Raises:
            TypeError: an argument is not a tensor, or has the wrong dtype or kind.
            ValueError: a shape, a value or a device does not fit. One line: the argument, what was expected, what came.
        """
        if _PLAIN.issuperset(map(type, tensors)):
            try:
                return self._cached_check(tuple(map(_described_plain, tensors)), **statics)
            except (TypeError, RuntimeError):  # a static without a hash, or a nested tensor, which has no shape
                pass
        return self._check(tuple([_described(t) for t in tensors]), statics)

    @functools.lru_cache(maxsize=4096, typed=True)  # noqa: B019  a contract lives as long as its module
    def _cached_check(self, tensors: tuple[_Described, ...], **statics: float) -> Mapping[str, int]:
        return self._check(tensors, statics)

    def _check(self, tensors: tuple[_Described, ...], statics: Mapping[str, float]) -> Mapping[str, int]:
        bound: dict[str, int] = {}
        first_device = tensors[0][3]
        for spec, (kind, shape, dtype, device, layout) in zip(self.inputs, tensors, strict=True):
            if not issubclass(kind, Tensor):
                got = kind.__name__.removesuffix("Type")  # NoneType is that of None
                raise TypeError(f"{self.op}: {spec.name}: expected a tensor, got {got}")
            if layout is not torch.strided:
                raise TypeError(f"{self.op}: {spec.name}: expected a strided tensor, got {name_of(layout)}")
            if dtype not in spec.dtypes:
                expected = " or ".join(map(name_of, spec.dtypes))
                hint = _hint(dtype, spec.dtypes)
                raise TypeError(f"{self.op}: {spec.name}: expected {expected}, got {name_of(dtype)}{hint}")
            if device != first_device and not (spec.host and device.type == "cpu"):
                raise ValueError(f"{self.op}: {spec.name}: expected device {first_device}, got {device}")
            self._check_shape(spec, shape, bound)
        told: set[str] = set()
        for spec, (_, shape, *_) in zip(self.inputs, tensors, strict=True):
            self._check_arithmetic(spec, shape, bound, told)
        for name, value in statics.items():
            self.statics[name].check(f"{self.op}: {name}", value)
        return MappingProxyType(bound)

    def _check_shape(self, spec: TensorSpec, shape: torch.Size, bound: dict[str, int]) -> None:
        free = len(shape) - len(spec.dims)
        if free < 0 or (free and not spec.leading):
            raise self._bad_shape(spec, shape, bound)
        if spec.leading:
            self._bind(spec, shape, spec.leading, math.prod(shape[:free]), bound)
        for dim, extent in zip(spec.dims, shape[free:], strict=True):
            if any(_is_derived(t) for t in dim):
                continue
            unbound = [t for t in dim if isinstance(t, str) and t not in bound]
            known = sum(bound[t] if isinstance(t, str) else t for t in dim if t not in unbound)
            if len(unbound) == 1:
                self._bind(spec, shape, unbound[0], extent - known, bound)
            elif extent != known:
                raise self._bad_shape(spec, shape, bound)

    def _check_arithmetic(self, spec: TensorSpec, shape: torch.Size, bound: Mapping[str, int], told: set[str]) -> None:
        """Check what is told by other sizes once these are known: some dimensions, and relations.

        ``told`` are the sizes of the tensors before this one, to which its own are added: a relation is the affair of the
        tensor that completes it.
        """
        told.update(_IDENTIFIER.findall(spec.shape))
        for dim, extent in zip(spec.dims[::-1], shape[::-1], strict=False):
            if _is_derived(dim[0]) and extent != arithmetic.evaluate(str(dim[0]), bound):
                raise self._bad_shape(spec, shape, bound)
        for relation in self.relations:
            names = arithmetic.names(relation)
            if names <= {*bound} & told and not arithmetic.evaluate(relation, bound):
                raise self._bad_shape(spec, shape, bound, f" with {relation}")

    def _bind(self, spec: TensorSpec, shape: torch.Size, name: str, extent: int, bound: dict[str, int]) -> None:
        if bound.setdefault(name, extent) != extent:
            raise self._bad_shape(spec, shape, bound)
        limits = self.sizes.get(name) or self.statics[name]
        if not limits.admits(extent):
            others = {other: size for other, size in bound.items() if other != name}
            raise self._bad_shape(spec, shape, others, f" with {name} in {limits.pretty}")

    def _bad_shape(self, spec: TensorSpec, shape: torch.Size, bound: Mapping[str, int], more: str = "") -> ValueError:
        known = [f"{n} = {bound[n]}" for n in dict.fromkeys(_IDENTIFIER.findall(spec.shape)) if n in bound]
        where = f", where {', '.join(known)}" if known else ""
        return ValueError(f"{self.op}: {spec.name}: expected shape {spec.pretty}{more}, got {list(shape)}{where}")


_CONVERTS = {torch.int32: ".int()", torch.float32: ".float()", torch.bfloat16: ".bfloat16()"}


def _hint(dtype: torch.dtype, expected: tuple[torch.dtype, ...]) -> str:
    """Return what to do where one dtype is expected and a conversion would do; bytes and fp8 come with scales."""
    one = expected[0]
    alike = dtype.is_floating_point == one.is_floating_point and dtype.itemsize > 1
    return f"; {_CONVERTS[one]} converts it" if len(expected) == 1 and one in _CONVERTS and alike else ""


def _described(value: object) -> _Described:
    tensor = value if isinstance(value, Tensor) else torch.empty(0)
    if tensor.is_nested:
        return type(value), torch.Size(), tensor.dtype, tensor.device, torch.jagged
    return type(value), tensor.shape, tensor.dtype, tensor.device, tensor.layout


def name_of(kind: torch.dtype | torch.layout) -> str:
    """Return a dtype or layout as an error message shows it."""
    return str(kind).removeprefix("torch.")
