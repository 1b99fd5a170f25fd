"""What a buffer holds in the symbolic reading: a stack of writes, the latest first.

A write covers many elements at once: its index and value mention parallel variables, each of which ranges over an
interval. Reading at an index solves for those variables. Where a write may or may not cover the element, the value is
an if-then-else between it and what lies below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..base.errors import Unsupported
from ..forms import extended
from ..forms import normal_form as nf
from ..forms.entailment import Facts
from ..forms.extended import Value
from ..forms.normal_form import Form


class Uninitialised(Unsupported):
    """A read of an element that may never have been written."""


@dataclass(frozen=True)
class Axis:
    """A parallel variable: every integer from ``lower``, ``extent`` of them."""

    variable: Form
    lower: Form
    extent: Form

    @property
    def number(self) -> int:
        """The number of the variable's atom."""
        (((number, _),),) = self.variable.terms
        return number


@dataclass(frozen=True)
class Write:
    """A store: where, under which conditions, and what, as functions of the axes."""

    index: tuple[Form, ...]
    axes: tuple[Axis, ...]
    path: tuple[Form, ...]
    value: Value

    def solve(self) -> tuple[dict[int, tuple[int, Form]], list[int]]:
        """For each axis its dimension and the offset there, and the dimensions without an axis.

        Raises:
            Unsupported: an axis is in no dimension, or a dimension is not one axis plus an offset.
        """
        numbers = {axis.number for axis in self.axes}
        solved: dict[int, tuple[int, Form]] = {}
        fixed = []
        for dim, form in enumerate(self.index):
            inside = numbers & nf.support(form)
            if not inside:
                fixed.append(dim)
                continue
            (number, *more) = inside
            offset = form - nf.of_atom(nf.atom_of(number))
            if more or number in solved or number in nf.support(offset):
                raise Unsupported(f"a parallel write at index {form}, which is not one loop variable plus an offset")
            solved[number] = dim, offset
        for axis in self.axes:
            if axis.number not in solved:
                raise Unsupported(
                    f"several parallel iterations write the same element: {axis.variable} is not in the index"
                )
        return solved, fixed


@dataclass
class _Points:
    """Writes to elements whose indices are constant, under one path."""

    path: tuple[Form, ...]
    values: dict[tuple[Form, ...], Value] = field(default_factory=dict)


@dataclass(frozen=True)
class _Barrier:
    """What lies below is unknown where the path holds."""

    path: tuple[Form, ...]


class Contents:
    """The content of one buffer. Copies share what they do not change."""

    def __init__(self, name: str, layers: Sequence[Write | _Points | _Barrier] = ()) -> None:
        self.name = name
        self._layers = list(layers)
        self._memo: dict[tuple[tuple[Form, ...], tuple[Form, ...]], Value] = {}

    def copy(self) -> Contents:
        """The same content, to be changed independently."""
        layers = [_Points(p.path, dict(p.values)) if isinstance(p, _Points) else p for p in self._layers]
        return Contents(self.name, layers)

    @property
    def height(self) -> int:
        """How many layers there are."""
        return len(self._layers)

    def forget(self, path: tuple[Form, ...]) -> None:
        """Every element becomes uninitialised where the path holds."""
        self._memo.clear()
        if not path:
            self._layers.clear()
        self._layers.append(_Barrier(path))

    def write(self, write: Write) -> None:
        """Store."""
        self._memo.clear()
        if write.axes or any(i.constant is None for i in write.index):
            write.solve()
            self._layers.append(write)
            return
        top = self._layers[-1] if self._layers else None
        if not isinstance(top, _Points) or top.path != write.path:
            top = _Points(write.path)
            self._layers.append(top)
        top.values[write.index] = write.value

    def read(self, index: tuple[Form, ...], facts: Facts) -> Value:
        """The value at an index.

        Raises:
            Uninitialised: it is not proved that the element has been written.
        """
        key = index, facts.path
        if key not in self._memo:
            self._memo[key] = self._read(index, facts, len(self._layers))
        return self._memo[key]

    def _read(self, index: tuple[Form, ...], facts: Facts, height: int) -> Value:
        for level in range(height - 1, -1, -1):
            layer = self._layers[level]
            if isinstance(layer, _Barrier):
                if any(facts.decide(c) is False for c in layer.path):
                    continue
                break
            if isinstance(layer, Write):
                value, conditions = _match(layer, index)
            elif index in layer.values:
                value, conditions = layer.values[index], list(layer.path)
            elif all(i.constant is not None for i in index):
                continue
            else:
                return self._read_points(layer, list(layer.values), index, facts, level)
            open_conditions = [c for c in conditions if not facts.holds(c)]
            if not open_conditions:
                return value
            if any(facts.decide(c) is False for c in open_conditions):
                continue
            return self._either(open_conditions, value, facts, lambda below=level: self._read(index, facts, below))
        raise Uninitialised(f"{self.name}[{', '.join(map(str, index))}] may be read before it is written")

    def _read_points(
        self, layer: _Points, points: list[tuple[Form, ...]], index: tuple[Form, ...], facts: Facts, level: int
    ) -> Value:
        if not points:
            return self._read(index, facts, level)
        point, *others = points
        equations = [nf.indicator("eq", i - p, integer=True) for i, p in zip(index, point, strict=True)]
        open_conditions = [c for c in (*equations, *layer.path) if not facts.holds(c)]
        if not open_conditions:
            return layer.values[point]
        if any(facts.decide(c) is False for c in open_conditions):
            return self._read_points(layer, others, index, facts, level)
        value = layer.values[point]
        return self._either(
            open_conditions, value, facts, lambda: self._read_points(layer, others, index, facts, level)
        )

    @staticmethod
    def _either(conditions: list[Form], value: Value, facts: Facts, below: object) -> Value:
        condition = nf.ONE
        for c in conditions:
            condition = condition * c
        with facts.assuming(nf.ONE - condition):
            otherwise = below()  # type: ignore[operator]
        return extended.select(condition, value, otherwise)


def _match(write: Write, index: tuple[Form, ...]) -> tuple[Value, list[Form]]:
    """The value of a write at an index, and the conditions under which the write covers that index."""
    solved, fixed = write.solve()
    values = {number: index[dim] - offset for number, (dim, offset) in solved.items()}
    conditions = [nf.indicator("eq", index[d] - nf.substitute(write.index[d], values), integer=True) for d in fixed]
    for axis in write.axes:
        place = values[axis.number] - axis.lower
        conditions.append(nf.indicator("ge", place, integer=True))
        conditions.append(nf.indicator("ge", axis.extent - 1 - place, integer=True))
    conditions += [nf.substitute(c, values) for c in write.path]
    value = write.value
    return Value(nf.substitute(value.form, values), nf.substitute(value.finite, values), value.sign), conditions
