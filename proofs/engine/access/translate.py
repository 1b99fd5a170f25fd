"""Integer expressions of the compiler's IR as mathematical integers, with an obligation wherever a machine differs.

An expression that is not an integer (a float, a pointer) has no value here: ``None``. Its operands are still visited
for the accesses and the arithmetic in them. Vectors are read lane by lane: a ramp is ``base + lane * stride`` with
``lane`` a variable of the statement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import tilelang  # noqa: F401  (only then is the tvm that it bundles importable)
import z3
from tvm import tirx

from ..base.dtypes import bits, fits, is_integer, lanes
from ..base.errors import Unsupported
from ..contract.hypotheses import Hypotheses
from . import intrinsics
from .counters import float_interval, of_type
from .state import Key, LocalState
from .trace import Access, Recorder, Region, Variable
from .wgmma import Descriptor

Value: TypeAlias = z3.ExprRef | None


def text(node: object) -> str:
    """An expression or simple statement as the compiler prints it, without the declarations it prints before."""
    return str(node).strip().splitlines()[-1].strip()


class Translator:
    """Expressions to terms. Everything met on the way is filed with the recorder.

    Args:
        recorder: where accesses and obligations go.
        hypotheses: what is known of the elements of tensors.
        written: names of global buffers that the kernel writes, whose elements therefore change.
        bound: the variables that the kernel binds.
    """

    def __init__(
        self, recorder: Recorder, hypotheses: Hypotheses, written: frozenset[str], bound: frozenset[int]
    ) -> None:
        self.recorder = recorder
        self.hypotheses = hypotheses
        self.written = written
        self._bound = bound
        self.values: dict[int, Value] = {}  # by the identity of the IR's variable
        self.regions: dict[int, tuple[str, int]] = {}  # data pointer -> allocation and byte offset in it
        self.buffers: dict[int, tirx.Buffer] = {}  # data pointer -> a buffer declared on it
        self.locals = LocalState(self._private, self._followed)
        self.counters: Mapping[int, tuple[z3.ArithRef, z3.ArithRef]] = {}  # data pointer -> least and largest value
        self.shared_bytes: dict[str, int] = {}  # by allocation
        self.lane: dict[int, Variable] = {}
        self.descriptors: dict[int, Descriptor] = {}  # data pointer -> the operand of a product
        self._quiet = False

    def integer(self, e: tirx.PrimExpr) -> z3.ArithRef:
        """The value of an expression that must be an integer."""
        value = self.value(e)
        if value is None:
            raise Unsupported(f"no integer: {text(e)}")
        return z3.If(value, z3.IntVal(1), z3.IntVal(0)) if z3.is_bool(value) else value

    def boolean(self, e: tirx.PrimExpr) -> z3.BoolRef:
        """The value of a condition."""
        value = self.value(e)
        if value is None:
            raise Unsupported(f"no condition: {text(e)}")
        return value if z3.is_bool(value) else value != 0

    def constant(self, e: tirx.PrimExpr) -> z3.ArithRef:
        """The value of an expression that no machine evaluates, such as a shape: without obligations."""
        self._quiet, before = True, self._quiet
        value = z3.simplify(self.integer(e))
        self._quiet = before
        return value

    def over_sizes(self, e: tirx.PrimExpr) -> z3.ArithRef:
        """The value of an expression of sizes and constants alone.

        Raises:
            Unsupported: something else is in it.
        """
        others: list[object] = []

        def visit(node: object) -> None:
            if isinstance(node, (tirx.BufferLoad, tirx.Call)):
                others.append(node)

        tirx.stmt_functor.post_order_visit(e, visit)
        if others:
            raise Unsupported(f"{text(e)} is not a matter of sizes")
        return self.constant(e)

    def opaque(self, name: str, dtype: str) -> Value:
        """A value of which only the type is known."""
        if not is_integer(dtype):
            return None
        name = self.recorder.unique(name)
        if dtype.startswith("bool"):
            return z3.Bool(name)
        term = z3.Int(name)
        self.recorder.facts.append(fits(term, dtype))
        return term

    def _private(self, key: Key, is_set: bool) -> Value:
        """A value read from a thread's own memory."""
        value = self.opaque("local", key[1])
        if is_set and key[0] in self.counters and value is not None and not z3.is_bool(value):
            low, high = self.counters[key[0]]
            self.recorder.facts.append(z3.And(value >= low, value <= high))
        return value

    def _followed(self, data: int) -> int | None:
        """The number of elements of a buffer whose values lie between bounds, if they are set."""
        if data not in self.counters:
            return None
        size = z3.simplify(z3.Product([z3.IntVal(1), *(self.constant(n) for n in self.buffers[data].shape)]))
        return size.as_long() if z3.is_int_value(size) else -1

    def region(self, buffer: tirx.Buffer) -> Region:
        """Where a buffer lies."""
        data = buffer.data
        allocation, offset = self.regions.get(hash(data), (data.name, 0))
        shape = tuple(self.constant(n) for n in buffer.shape)
        return Region(buffer.name, buffer.scope(), bits(str(buffer.dtype)), shape, allocation, offset)

    def access(self, mode: str, buffer: tirx.Buffer, indices: list[tirx.PrimExpr]) -> tuple[z3.ArithRef, ...]:
        """File one read or write of a buffer and return its indices."""
        terms = tuple(self.integer(i) for i in indices)
        self.recorder.access(Access(mode, self.region(buffer), terms, self.recorder.context))  # type: ignore[arg-type]
        return terms

    def value(self, e: tirx.PrimExpr) -> Value:
        """The value of an expression; None unless it is an integer or a boolean."""
        method: Callable[[tirx.PrimExpr], Value] | None = getattr(self, f"_{type(e).__name__}", None)
        if method is None:
            raise Unsupported(f"expression {type(e).__name__}: {text(e)}")
        return method(e)

    # Leaves.

    def _IntImm(self, e: tirx.IntImm) -> Value:  # noqa: N802 (named for the IR's classes)
        return z3.BoolVal(bool(e.value)) if str(e.dtype) == "bool" else z3.IntVal(int(e.value))

    def _FloatImm(self, e: tirx.FloatImm) -> Value:  # noqa: N802
        return None

    _StringImm = _FloatImm

    def _Var(self, e: tirx.Var) -> Value:  # noqa: N802
        if hash(e) in self.values:
            return self.values[hash(e)]
        if hash(e) not in self._bound and e.name in self.hypotheses.sizes:  # lowering renews sizes and keeps their names
            return self.hypotheses.sizes[e.name]
        if is_integer(str(e.dtype)):
            raise Unsupported(f"{e.name} is neither bound in the kernel nor a size of the contract")
        return None

    _SizeVar = _Var

    # Arithmetic.

    def checked(self, e: tirx.PrimExpr, term: z3.ArithRef) -> z3.ArithRef:
        """The value of an integer operation, and the obligation that it fits its type; an unsigned one is modulo 2^n."""
        dtype = str(e.dtype)
        if dtype.startswith("uint"):
            return term % 2 ** bits(dtype)
        if not self._quiet:
            self.recorder.require("overflow", f"{text(e)} does not overflow {e.dtype}", fits(term, str(e.dtype)))
        return term

    def _binary(self, e: tirx.PrimExpr) -> tuple[z3.ArithRef, z3.ArithRef] | None:
        if is_integer(str(e.dtype)):
            return self.integer(e.a), self.integer(e.b)
        self.value(e.a)
        self.value(e.b)
        return None

    def _Add(self, e: tirx.Add) -> Value:  # noqa: N802
        ab = self._binary(e)
        return self.checked(e, ab[0] + ab[1]) if ab else None

    def _Sub(self, e: tirx.Sub) -> Value:  # noqa: N802
        ab = self._binary(e)
        return self.checked(e, ab[0] - ab[1]) if ab else None

    def _Mul(self, e: tirx.Mul) -> Value:  # noqa: N802
        ab = self._binary(e)
        return self.checked(e, ab[0] * ab[1]) if ab else None

    def _Min(self, e: tirx.Min) -> Value:  # noqa: N802
        ab = self._binary(e)
        return z3.If(ab[0] <= ab[1], *ab) if ab else None

    def _Max(self, e: tirx.Max) -> Value:  # noqa: N802
        ab = self._binary(e)
        return z3.If(ab[0] >= ab[1], *ab) if ab else None

    def _division(
        self, e: tirx.PrimExpr, divide: Callable[..., tuple[z3.ArithRef, z3.ArithRef]]
    ) -> tuple[Value, Value]:
        """Quotient and remainder."""
        ab = self._binary(e)
        if ab is None:
            return None, None
        if not self._quiet:
            self.recorder.require("division", f"{text(e)} does not divide by zero", ab[1] != 0)
        quotient, remainder = divide(*ab)
        positive = z3.is_int_value(ab[1]) and ab[1].as_long() > 0  # the smallest integer over -1 overflows
        return quotient if positive else self.checked(e, quotient), remainder

    def _floor(self, a: z3.ArithRef, b: z3.ArithRef) -> tuple[z3.ArithRef, z3.ArithRef]:
        """Rounding down. z3 divides so by a positive constant; by anything else, name the result."""
        if z3.is_int_value(b) and b.as_long() > 0:
            return a / b, a % b
        division = self.recorder.divide(z3.simplify(a), z3.simplify(b))
        return division.quotient, division.remainder

    def _truncate(self, a: z3.ArithRef, b: z3.ArithRef) -> tuple[z3.ArithRef, z3.ArithRef]:
        """Rounding towards zero, as C does: down, and one up again where that left a remainder below zero."""
        quotient, remainder = self._floor(a, b)
        up = z3.And(remainder != 0, (a < 0) != (b < 0))
        return z3.If(up, quotient + 1, quotient), z3.If(up, remainder - b, remainder)

    def _FloorDiv(self, e: tirx.FloorDiv) -> Value:  # noqa: N802
        return self._division(e, self._floor)[0]

    def _FloorMod(self, e: tirx.FloorMod) -> Value:  # noqa: N802
        return self._division(e, self._floor)[1]

    def _Div(self, e: tirx.Div) -> Value:  # noqa: N802
        return self._division(e, self._truncate)[0]

    def _Mod(self, e: tirx.Mod) -> Value:  # noqa: N802
        return self._division(e, self._truncate)[1]

    def _Cast(self, e: tirx.Cast) -> Value:  # noqa: N802
        source, target = str(e.value.dtype), str(e.dtype)
        if not is_integer(source) or not is_integer(target):
            self.value(e.value)
            value = self.opaque("cast", target)
            if isinstance(value, z3.ArithRef):
                self.recorder.facts.append(self._cut_off(e, value))
            return value
        if target.startswith("bool"):
            return self.boolean(e.value)
        term = self.integer(e.value)
        if target.startswith("uint") and bits(target) >= bits(source):  # modulo 2^n, as unsigned arithmetic
            return term if source.startswith("uint") else term % 2 ** bits(target)
        narrower = bits(target) < bits(source) or target.startswith("uint") != source.startswith("uint")
        if narrower and not self._quiet:
            self.recorder.require("cast", f"{text(e.value)} fits {target}", fits(term, target))
        return term

    def _cut_off(self, e: tirx.Cast, value: z3.ArithRef) -> z3.BoolRef:
        """The integer of a float is between those of the constants that bound the float, which must fit the type."""
        low, high = float_interval(e.value)
        least, most = of_type(str(e.dtype))
        if not (least - 1 < low and high < most + 1):
            raise Unsupported(f"a cast to {e.dtype} of a float that no constants keep within its range: {text(e)}")
        return z3.And(value >= math.trunc(low), value <= math.trunc(high))

    # Comparison and choice.

    def _comparison(self, e: tirx.PrimExpr) -> Value:
        a, b = self.value(e.a), self.value(e.b)
        if a is None or b is None:  # of floats: either outcome
            return self.opaque("comparison", "bool")
        if z3.is_bool(a) and z3.is_bool(b) and isinstance(e, (tirx.EQ, tirx.NE)):
            return a == b if isinstance(e, tirx.EQ) else a != b
        a, b = (z3.If(t, z3.IntVal(1), z3.IntVal(0)) if z3.is_bool(t) else t for t in (a, b))
        orders: dict[type, Callable[[], z3.BoolRef]] = {
            tirx.EQ: lambda: a == b,
            tirx.NE: lambda: a != b,
            tirx.LT: lambda: a < b,
            tirx.LE: lambda: a <= b,
            tirx.GT: lambda: a > b,
            tirx.GE: lambda: a >= b,
        }
        return orders[type(e)]()

    _EQ = _NE = _LT = _LE = _GT = _GE = _comparison

    def _And(self, e: tirx.And) -> Value:  # noqa: N802
        a = self.boolean(e.a)
        if lanes(str(e.dtype)) > 1:  # of vectors: both sides are evaluated
            return z3.And(a, self.boolean(e.b))
        with self.recorder.under(a):
            b = self.boolean(e.b)
        return z3.And(a, b)

    def _Or(self, e: tirx.Or) -> Value:  # noqa: N802
        a = self.boolean(e.a)
        if lanes(str(e.dtype)) > 1:
            return z3.Or(a, self.boolean(e.b))
        with self.recorder.under(z3.Not(a)):
            b = self.boolean(e.b)
        return z3.Or(a, b)

    def _Not(self, e: tirx.Not) -> Value:  # noqa: N802
        return z3.Not(self.boolean(e.a))

    def _Select(self, e: tirx.Select) -> Value:  # noqa: N802 (both arms are evaluated, whatever the condition)
        c, a, b = self.boolean(e.condition), self.value(e.true_value), self.value(e.false_value)
        return None if a is None or b is None else z3.If(c, a, b)

    def if_then_else(self, e: tirx.Call) -> Value:
        """A choice that evaluates one arm only."""
        c = self.boolean(e.args[0])
        with self.recorder.under(c):
            a = self.value(e.args[1])
        with self.recorder.under(z3.Not(c)):
            b = self.value(e.args[2])
        return None if a is None or b is None else z3.If(c, a, b)

    def _Let(self, e: tirx.Let) -> Value:  # noqa: N802
        self.values[hash(e.var)] = self.value(e.value)
        return self.value(e.body)

    # Vectors.

    def _lane(self, count: int) -> z3.ArithRef:
        if count not in self.lane:
            name = self.recorder.unique("lane")
            self.lane[count] = Variable(name, "lane", z3.IntVal(0), z3.IntVal(count))
            self.recorder.variables.append(self.lane[count])  # the walker takes it off after the statement
        return self.lane[count].term

    def _Ramp(self, e: tirx.Ramp) -> Value:  # noqa: N802
        if lanes(str(e.base.dtype)) > 1:
            raise Unsupported(f"nested vector {text(e)}")
        base, stride = self.integer(e.base), self.integer(e.stride)
        return self.checked(e, base + stride * self._lane(int(e.lanes)))

    def _Broadcast(self, e: tirx.Broadcast) -> Value:  # noqa: N802
        return self.value(e.value)

    def _Shuffle(self, e: tirx.Shuffle) -> Value:  # noqa: N802
        for operand in (*e.vectors, *e.indices):
            self.value(operand)
        return self.opaque("shuffle", str(e.dtype))

    # Memory.

    def _BufferLoad(self, e: tirx.BufferLoad) -> Value:  # noqa: N802
        if e.predicate is not None:
            raise Unsupported(f"predicated load {text(e)}")
        indices, dtype = self.access("read", e.buffer, e.indices), str(e.dtype)
        if not is_integer(dtype):
            return None
        name, scope = e.buffer.data.name, e.buffer.scope()
        if scope == "global" and name in self.hypotheses.shapes and name not in self.written:
            return self._element(name, indices, dtype)
        if scope.startswith("local"):
            key = (hash(e.buffer.data), str(e.buffer.dtype))
            return self.locals.read(key, indices)
        return self.opaque(e.buffer.name, dtype)

    def _element(self, tensor: str, indices: tuple[z3.ArithRef, ...], dtype: str) -> Value:
        """An element of a tensor that the kernel only reads: a function of its index."""
        boolean = dtype.startswith("bool")
        result = z3.BoolSort() if boolean else z3.IntSort()
        element = z3.Function(tensor, *(z3.IntSort() for _ in indices), result)(*indices)
        if not boolean:
            self.recorder.facts.append(fits(element, dtype))
            if len(indices) == len(self.hypotheses.shapes[tensor]):
                self.recorder.facts += self.hypotheses.of_element(tensor, indices, element)
            else:  # flattened: the range holds of every element of the tensor
                self.recorder.facts += self._flat_element(tensor, indices, element)
        return element

    def _flat_element(self, tensor: str, indices: tuple[z3.ArithRef, ...], element: z3.ArithRef) -> list[z3.BoolRef]:
        if len(indices) != 1:
            raise Unsupported(f"{tensor} is read through {len(indices)} indices")
        low, high = self.hypotheses.ranges.get(tensor, (None, None))
        bounds = ([element >= low] if low is not None else []) + ([element < high] if high is not None else [])
        inside = z3.And(indices[0] >= 0, indices[0] < self.hypotheses.elements(tensor))
        return [z3.Implies(inside, z3.And(*bounds))] if bounds else []

    # Intrinsics.

    def _Call(self, e: tirx.Call) -> Value:  # noqa: N802
        return intrinsics.call(self, e)
