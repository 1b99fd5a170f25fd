"""Integer expressions of the compiler's IR as mathematical integers, with an obligation wherever a machine differs.

An expression that is not an integer (a float, a pointer) has no value here: ``None``. Its operands are still visited
for the accesses and the arithmetic in them. Vectors are read lane by lane: a ramp is ``base + lane * stride`` with
``lane`` a variable of the statement.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import tilelang  # noqa: F401  (only then is the tvm that it bundles importable)
import z3
from tvm import tirx

from ..base.dtypes import bits, fits, is_integer, lanes
from ..base.errors import Unsupported
from . import intrinsics
from .counters import float_interval, of_type
from .reading import Reading, Value, text
from .trace import Variable


class Translator(Reading):
    """The reading of each class of the IR's expressions."""

    def value(self, e: tirx.PrimExpr) -> Value:
        """Return the value of an expression; None unless it is an integer or a boolean."""
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
        if (
            hash(e) not in self._bound and e.name in self.hypotheses.sizes
        ):  # lowering renews sizes and keeps their names
            return self.hypotheses.sizes[e.name]
        if is_integer(str(e.dtype)):
            raise Unsupported(f"{e.name} is neither bound in the kernel nor a size of the contract")
        return None

    _SizeVar = _Var

    # Arithmetic.

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
        """Return quotient and remainder."""
        ab = self._binary(e)
        if ab is None:
            return None, None
        if not self._quiet:
            self.recorder.require("division", f"{text(e)} does not divide by zero", ab[1] != 0)
        quotient, remainder = divide(*ab)
        positive = z3.is_int_value(ab[1]) and ab[1].as_long() > 0  # the smallest integer over -1 overflows
        return quotient if positive else self.checked(e, quotient), remainder

    def _floor(self, a: z3.ArithRef, b: z3.ArithRef) -> tuple[z3.ArithRef, z3.ArithRef]:
        """Return quotient and remainder, rounded down. Z3 divides so by positive constants; else the results get names."""
        if z3.is_int_value(b) and b.as_long() > 0:
            return a / b, a % b
        division = self.recorder.divide(z3.simplify(a), z3.simplify(b))
        return division.quotient, division.remainder

    def _truncate(self, a: z3.ArithRef, b: z3.ArithRef) -> tuple[z3.ArithRef, z3.ArithRef]:
        """Return quotient and remainder, towards zero as in C: down, and up again where a remainder is left below it."""
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
        """Return that a cast float is between the constants that bound it.

        Raises:
            Unsupported: these do not fit the type.
        """
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

    def _if_then_else(self, e: tirx.Call) -> Value:
        """Return a choice that evaluates one arm only."""
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
        return self.shared(e.buffer, indices)

    def _element(self, tensor: str, indices: tuple[z3.ArithRef, ...], dtype: str) -> Value:
        """Return an element of a tensor that the kernel only reads: a function of its index."""
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
        is_choice = getattr(e.op, "name", "") == "tirx.if_then_else"
        return self._if_then_else(e) if is_choice else intrinsics.call(self, e)
