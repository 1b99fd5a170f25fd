"""Symbolic execution of a kernel at the tile level: the semantics read with normal forms.

The values are those of the extended reals: rounding, overflow of floats and the order of additions are not modelled, and
the elements of float inputs are taken to be finite, but for inputs of which the kernel uses only the bits. Accesses are
taken to be in bounds, and each output element to be written by one thread only; other layers prove both. All blocks,
threads and iterations of a parallel loop are one symbolic one. A sequential loop is unrolled if its extent is constant,
or cut by an ``Invariant``.

A buffer in shared memory, or a fragment, may be used by explicit threads in their own lane only: where one dimension of
every index is the thread variable itself. A buffer in global memory may be read until it is written: what is read then
was there before, since no thread touches what another one writes, which layer L1 proves. A later read is rejected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any

from ..base.dtypes import is_integer
from ..base.errors import Unsupported
from ..compiler.source_text import describe
from ..forms import extended
from ..forms import normal_form as nf
from ..forms.constants import LN2, unify
from ..forms.entailment import Facts
from ..forms.extended import Value
from ..forms.normal_form import ONE, ZERO, Form
from ..semantics.algebra import Binary, Comparison, Dimension, Memory, Reduction, Unary
from ..semantics.semantics import Machine
from .contents import Axis, Buffers
from .induction import Induction
from .invariants import Invariant
from .obligations import Kind, Obligation
from .outcome import Execution as Execution

_LONGEST = 1024  # the largest constant extent of a loop that is unrolled
_REQUIRED: Mapping[Unary, Kind] = {  # what the operand of a function must be
    **{"exp": "exp", "exp2": "exp", "log": "positive", "log2": "positive"},
    **{"sqrt": "nonnegative", "rsqrt": "positive", "rcp": "nonzero"},
}


Reading = Callable[[Execution, Mapping[str, Invariant]], "Symbols"]
"""What makes an algebra: ``Symbols``, or one that reads a kernel otherwise."""


def block(dimension: Dimension = "x") -> Form:
    """Return the block index of a kernel under execution."""
    return nf.variable(f"blockIdx.{dimension}")


def thread(dimension: Dimension = "x") -> Form:
    """Return the thread index of a kernel under execution."""
    return nf.variable(f"threadIdx.{dimension}")


def round_of(loop: str) -> Form:
    """Return the number of the round under execution, of the loop of this name."""
    return nf.variable(f"{loop}.round")


def execute(
    prim_func: Any,
    *,
    sizes: Mapping[str, Form] | None = None,
    invariants: Mapping[str, Invariant] | None = None,
    facts: Facts | None = None,
    raw: Sequence[str] = (),
    infinite: Sequence[str] = (),
    finite: Mapping[str, Callable[..., Form]] | None = None,
    most: float = 0,
    reading: Reading | None = None,
) -> Execution:
    """Run a kernel on symbolic inputs: element ``x[i, j]`` of an input is the atom ``read("x", i, j)``.

    Args:
        prim_func: the kernel, as its factory returns it or after the launch has been materialised.
        sizes: values for symbolic dimensions; a dimension without one is a natural variable of its own name.
        invariants: for loops to be cut, by loop name (``semantics.serial_loops``).
        facts: what the contract says of the sizes and of integer inputs.
        raw: float inputs of which the kernel uses only the bits; their elements may be any float.
        infinite: float inputs whose elements are all +inf.
        finite: for float inputs of which some elements are -inf, where the others are: from an index a form that is 0 or 1.
        most: what the range layer shows of the arguments of exp, if the contract bounds no float input: that they are no more.
        reading: the algebra, if it is another one than ``Symbols``.

    Raises:
        Unsupported: the kernel is outside of what is modelled; also a read of what may not have been written, or a
            value that may be NaN.
    """
    given = facts if facts is not None else Facts()
    execution = Execution(given, frozenset(raw), frozenset(infinite), finite or {}, most=most)
    dims = {d.name: nf.variable(d.name) for b in prim_func.buffer_map.values() for d in b.shape if hasattr(d, "name")}
    values = {name: Value(form) for name, form in {**dims, **(sizes or {})}.items()}
    algebra = (reading or Symbols)(execution, invariants or {})
    machine = Machine(algebra, prim_func, values)
    if unknown := set(invariants or {}) - set(machine.loops.values()):
        raise ValueError(f"no loop is named {sorted(unknown)}; there are {sorted(machine.loops.values())}")
    machine.parameters()
    machine.run()
    execution.externs, execution.unmodelled = machine.externs, frozenset(machine.waits)
    return execution


class Symbols(Buffers):
    """The algebra of normal forms."""

    def __init__(self, execution: Execution, invariants: Mapping[str, Invariant]) -> None:
        super().__init__(execution)
        self.invariants = invariants
        self.inducing: Induction | None = None  # the loop with an invariant that control is in

    def literal(self, value: float, dtype: str) -> Value:
        """Return a constant; one of a float type is unified with others (``constants``)."""
        if is_integer(dtype):
            return Value(nf.form(int(value)))
        if value in (float("inf"), float("-inf")):
            return extended.INFINITY if value > 0 else extended.negative(extended.INFINITY)
        return Value(nf.form(unify(value, dtype)))

    def infinity(self, dtype: str) -> Value:
        """Return positive infinity."""
        return extended.INFINITY

    def unary(self, operator: Unary, a: Value, dtype: str) -> Value:
        """Apply a function to one value; those without laws are uninterpreted."""
        a = extended.multiply(a, Value(nf.form(LN2))) if operator == "exp2" else a
        if operator in _REQUIRED:
            self.execution.types.add(dtype)
            self._require(_REQUIRED[operator], a)
        if operator in ("tanh", "sin", "cos", "erf"):
            return Value(nf.apply(operator, a.real))
        if operator == "not":
            return Value(ONE - a.form)
        if known := extended.FUNCTIONS.get(operator.removesuffix("2")):
            found = known(a, dtype)
            return Value(found.form * (1 / LN2)) if operator == "log2" else found
        raise Unsupported(f"{operator} in the symbolic reading")

    def binary(self, operator: Binary, a: Value, b: Value, dtype: str) -> Value:
        """Apply an operation of the ring, or one on integers."""
        if dtype.startswith("uint") and operator in ("add", "sub", "mul"):
            raise Unsupported(f"{operator} of {dtype}, which is modulo a power of two")
        match operator:
            case "add" | "sub":
                return extended.add(a, b if operator == "add" else extended.negative(b))
            case "mul" | "and":
                return extended.multiply(a, b)
            case "or":
                return Value(a.form + b.form - a.form * b.form)
            case "div":
                self._require("nonzero", b)
                return extended.divide(a, b)
            case "max" | "maxnan":  # so that a clamped index is recognised, it is one of the two if it is known which
                known = self.facts.decide(nf.nonnegative(a.form - b.form)) if is_integer(dtype) else None
                return extended.maximum(a, b) if known is None else a if known else b
            case "min":
                return extended.negative(self.binary("max", extended.negative(a), extended.negative(b), dtype))
            case "pow" if (exponent := b.real.constant) is not None and exponent == int(exponent) and exponent >= 0:
                return Value(a.real**exponent, computed="nonnegative" if exponent % 2 == 0 else None)
            case "floordiv" | "floormod" | "truncdiv" | "truncmod":
                return Value(self._divide(operator, a.form, b.form))
        raise Unsupported(f"{operator} of {dtype} in the symbolic reading")

    def _divide(self, operator: str, a: Form, b: Form) -> Form:
        """Return the quotient or remainder by a positive number: opaque but for multiples of a constant."""
        if not self.facts.holds(nf.nonnegative(b - 1)):
            raise Unsupported(f"division of integers by {b}, which is not known to be positive")
        if operator.startswith("trunc") and not self.facts.holds(nf.nonnegative(a)):
            raise Unsupported(f"truncating division of {a}, which may be negative")
        result = nf.apply("floordiv", a, b)
        if b.constant is not None:
            whole, rest = nf.multiple(a, int(b.constant))
            within = nf.nonnegative(rest) * nf.nonnegative(b - 1 - rest)
            result = whole if self.facts.holds(within) else result
        return result if operator.endswith("div") else a - b * result

    def compare(self, operator: Comparison, a: Value, b: Value, dtype: str) -> Value:
        """Return a comparison as a form that is 0 or 1."""
        integer = is_integer(dtype)
        if operator in ("eq", "ne"):
            found = extended.same(a, b, integer=integer)
        else:
            found = extended.at_least(*((a, b) if operator in ("ge", "lt") else (b, a)), integer=integer)
        return Value(ONE - found if operator in ("ne", "lt", "gt") else found)

    def cast(self, a: Value, source: str, target: str) -> Value:
        """Return the same number, or whether it is not 0; a float does not become an integer."""
        self.execution.types.add(target)
        if target == "bool":
            return self.compare("ne", a, Value(ZERO), source)
        if is_integer(target) and not is_integer(source):
            raise Unsupported(f"a cast from {source} to {target} in the symbolic reading")
        if target.startswith("uint") and not source.startswith(("uint", "bool")):
            raise Unsupported(f"a cast from {source} to {target}, which is modulo a power of two")
        return a

    def bits(self, a: Value, source: str, target: str) -> Value:
        """Return an opaque integer, of an element of a raw input alone."""
        if (source, target) != ("float32", "int32"):
            raise Unsupported(f"the bits of {source} as {target} in the symbolic reading")
        return extended.bits(a)

    def select(self, condition: Value, then: Value, otherwise: Value, dtype: str) -> Value:
        """Return one of two values."""
        if (known := self.facts.decide(condition.form)) is not None:
            return then if known else otherwise
        return extended.select(condition.form, then, otherwise)

    def reduce(self, kind: Reduction, extent: Value, body: Callable[[Value], Value], dtype: str) -> Value:
        """Return a sum, written out or not, of finite values; or a maximum or minimum."""
        if kind == "min":
            return extended.negative(self.reduce("max", extent, lambda k: extended.negative(body(k)), dtype))
        if kind == "sum":
            return self._sum(extent.form, body)
        size = extent.real.constant
        many = size is None or size > nf.LONGEST_MAX
        first = self._bounded(nf.fresh("k"), extent.form, body) if many else body(Value(ZERO))
        if first.finite is not ONE and first.sign < 0 and (size is None or size > 2):
            return extended.largest((extent.form, lambda k: self._bounded(k, extent.form, body)))
        if size is None or many:
            return Value(nf.big_maximum(extent.form, lambda k: self._bounded(k, extent.form, body).real))
        return reduce(extended.maximum, (body(Value(nf.form(k))) for k in range(1, int(size))), first)

    def _sum(self, extent: Form, body: Callable[[Value], Value]) -> Value:
        """Return a sum, which is not negative if its summands are not, by how they are computed."""
        summands: list[Value] = []

        def summand(k: Form) -> Form:
            summands.append(self._bounded(k, extent, body))
            return summands[-1].real

        found = nf.summation(extent, summand)
        return Value(found, computed=None if None in extended.computed(*summands) else "nonnegative")

    def _bounded(self, k: Form, extent: Form, body: Callable[[Value], Value]) -> Value:
        """Evaluate the body at an index below the extent: a variable, or an expression with one where a sum is tiled."""
        below = nf.nonnegative(extent - 1 - k)
        with self.facts.assuming(*([] if k.constant is not None or len(k.terms) == 1 else [below])):
            return body(Value(self.facts.bound_fresh(k, extent)))

    def _require(self, kind: Kind, value: Value) -> None:
        self.execution.obligations.append(Obligation(kind, value, self.facts.path, describe(self.site)))

    def launch(self, threads: tuple[int, int, int]) -> tuple[Value, Value, Value]:
        """Return the indices of one symbolic thread."""
        variables = thread("x"), thread("y"), thread("z")
        x, y, z = map(self._index, variables, map(nf.form, threads))
        self._threads = nf.support(x.form + y.form + z.form)
        return x, y, z

    def grid(self, dimension: Dimension, extent: Value) -> Iterator[Value]:
        """Yield the index of one symbolic block."""
        yield self._index(block(dimension), extent.form)

    def _index(self, variable: Form, extent: Form) -> Value:
        """Return a variable with that bound, or 0 if it can be nothing else."""
        if extent is ONE:
            return Value(ZERO)
        self.facts.bound(variable, extent)
        return Value(variable)

    @contextmanager
    def axis(self, name: str, lower: Value, extent: Value) -> Iterator[Value]:
        """Yield a fresh variable that ranges over the axis."""
        if extent.form is ONE:
            yield lower
            return
        variable = nf.fresh(name)
        self.facts.bound(variable, lower.form + extent.form)
        self._axes.append(Axis(variable, lower.form, extent.form))
        try:
            with self.facts.assuming(nf.nonnegative(variable - lower.form)):
                yield Value(variable)
        finally:
            self._axes.pop()

    def serial(self, loop: str, lower: Value, extent: Value, body: Callable[[Value], None]) -> None:
        """Cut a loop by its invariant, or unroll it."""
        if loop in self.invariants:
            if loop in self.execution.inductions or self.inducing:
                raise Unsupported(f"loop {loop!r} with an invariant runs more than once or inside another such loop")
            runs = extent.form
            if not self.facts.holds(nf.nonnegative(runs)):  # a loop of fewer iterations than none runs none
                runs = nf.maximum([runs, ZERO])
            induction = Induction(self, loop, self.invariants[loop], runs)
            self.inducing = self.execution.inductions[loop] = induction
            induction.run(lower.form, lambda t: body(Value(t)))
            self.inducing = None
            return
        size = extent.form.constant
        if size is None or size > _LONGEST:
            raise Unsupported(f"loop {loop!r} of extent {extent.form} needs an invariant")
        for k in range(int(size)):
            body(Value(lower.form + k))

    def rounds(
        self, loop: str, span: tuple[Value, Value], changed: Sequence[Memory[Value]], body: Callable[[Value], None]
    ) -> None:
        """Run one symbolic round: at its beginning, and after the last, nothing is known of what rounds write."""
        lower, extent = span[0].form, span[1].form
        index = self._index(round_of(loop), extent).form
        self._written |= {memory.name for memory in changed if memory.scope == "global"}  # by earlier rounds
        own = [memory for memory in changed if memory.scope != "global"]
        kept = {memory: tuple(content.layers) for memory, content in self.contents.items() if memory not in own}
        for memory in own:
            self.contents[memory].forget(())
        body(Value(lower + index))
        if written := sorted(m.name for m, layers in kept.items() if tuple(self.contents[m].layers) != layers):
            raise Unsupported(f"rounds {loop!r} write {', '.join(written)}, which was not found to be written")
        for memory in own:
            self.contents[memory].forget(())

    def decided(self, condition: Value) -> bool | None:
        """Return True if the condition follows here, False if its negation does, else None."""
        return self.facts.decide(condition.form)

    def uniform(self, condition: Value) -> bool:
        """Return whether no thread variable occurs in the condition."""
        return self._threads.isdisjoint(nf.support(condition.form))

    @contextmanager
    def guard(self, condition: Value) -> Iterator[None]:
        """Add the condition to the path inside."""
        with self.facts.assuming(*([] if self.facts.holds(condition.form) else [condition.form])):
            yield

    def independent(self, store: Sequence[Value], access: Sequence[Value]) -> bool:
        """Return whether the access is at the store's index along each dimension in which that varies with the axes."""
        axes = {nf.number(axis.variable) for axis in self._axes}
        varying = [not axes.isdisjoint(nf.support(a.form)) for a in store]
        return all(self.facts.same(a.form, b.form) for v, a, b in zip(varying, store, access, strict=True) if v)

    def barrier(self) -> None:
        """Do nothing, for threads run in lock step."""

    def turn(self) -> None:
        """Tell the loop under way that a role's turn ends: an invariant may describe what the role leaves to others."""
        if self.inducing is not None:
            self.inducing.turn()
