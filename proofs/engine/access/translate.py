"""Integer expressions of the compiler's IR as mathematical integers, with an obligation wherever a machine differs.

An expression that is not an integer (a float, a pointer) has no value here: ``None``. Its operands are still visited
for the accesses and the arithmetic in them. Vectors are read lane by lane: a ramp is ``base + lane * stride`` with
``lane`` a variable of the statement.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence

import z3
from tvm import tirx

from ..base.dtypes import bits, fits, is_integer, lanes, number, span
from ..base.errors import Unsupported
from ..compiler.nodes import called, nodes
from ..compiler.source_text import printed
from . import intrinsics
from .private import OF_OPERANDS, interval
from .reading import Reading, Value
from .trace import Variable


class Translator(Reading):
    """The reading of each class of the IR's expressions."""

    def value(self, e: tirx.PrimExpr) -> Value:
        """Return the value of an expression; None unless it is an integer or a boolean."""
        match type(e).__name__:
            case "IntImm":
                return z3.BoolVal(bool(e.value)) if str(e.dtype) == "bool" else z3.IntVal(int(e.value))
            case "FloatImm" | "StringImm":
                return None
            case "Var" | "SizeVar":
                return self._variable(e)
            case "Add" | "Sub" | "Mul" | "Min" | "Max":
                return self._arithmetic(e)
            case "FloorDiv" | "FloorMod" | "Div" | "Mod":
                return self._division(e)
            case "Cast":
                return self._cast(e)
            case "EQ" | "NE" | "LT" | "LE" | "GT" | "GE":
                return self._comparison(e)
            case "And" | "Or":
                return self._connective(e)
            case "Not":
                return z3.Not(self.boolean(e.a))
            case "Select":
                return self._choice((e.condition, e.true_value, e.false_value), lazily=False)
            case "Call" if called(e) == "tirx.if_then_else":
                return self._choice(e.args, lazily=True)
            case "Call":
                return intrinsics.call(self, e)
            case "Let":
                self.values[hash(e.var)] = self.value(e.value)
                return self.value(e.body)
            case "Ramp" if lanes(str(e.base.dtype)) == 1:
                base, stride = self.integer(e.base), self.integer(e.stride)
                return self.checked(e, base + stride * self._lane(int(e.lanes)))
            case "Broadcast":
                return self.value(e.value)
            case "Shuffle":
                for operand in (*e.vectors, *e.indices):
                    self.value(operand)
                return self.opaque("shuffle", str(e.dtype))
            case "BufferLoad":
                return self._load(e)
        raise Unsupported(f"expression {type(e).__name__}: {printed(e)}")

    def _variable(self, e: tirx.Var) -> Value:
        if hash(e) in self.values:
            return self.values[hash(e)]
        if hash(e) not in self._bound and e.name in self.hypotheses.sizes:  # lowering renews sizes, not their names
            return self.hypotheses.sizes[e.name]
        if is_integer(str(e.dtype)):
            raise Unsupported(f"{e.name} is neither bound in the kernel nor a size of the contract")
        return None

    def _operands(self, e: tirx.PrimExpr) -> tuple[z3.ArithRef, z3.ArithRef] | None:
        """Return two integers; None if they are no integers."""
        if is_integer(str(e.dtype)):
            return self.integer(e.a), self.integer(e.b)
        self.value(e.a)
        self.value(e.b)
        return None

    def _arithmetic(self, e: tirx.PrimExpr) -> Value:
        operands, name = self._operands(e), type(e).__name__
        if operands is None:
            return None
        a, b = operands
        if name in ("Min", "Max"):
            return z3.If(a <= b if name == "Min" else a >= b, a, b)
        return self.checked(e, _of_python(e)(a, b))

    def _division(self, e: tirx.PrimExpr) -> Value:
        """Return the quotient or the remainder, rounded down or, of Div and Mod, towards zero."""
        operands, name = self._operands(e), type(e).__name__
        if operands is None:
            return None
        a, b = operands
        if not self._quiet:
            self.recorder.require("division", f"{printed(e)} does not divide by zero", b != 0)
        quotient, remainder = self._floor(a, b)
        if not name.startswith("Floor"):  # as in C: down, and up again where a remainder is left below zero
            up = z3.And(remainder != 0, (a < 0) != (b < 0))
            quotient, remainder = z3.If(up, quotient + 1, quotient), z3.If(up, remainder - b, remainder)
        if not (z3.is_int_value(b) and b.as_long() > 0):  # the smallest integer over -1 overflows
            quotient = self.checked(e, quotient)
        return quotient if name.endswith("Div") else remainder

    def _floor(self, a: z3.ArithRef, b: z3.ArithRef) -> tuple[z3.ArithRef, z3.ArithRef]:
        """Return quotient and remainder, rounded down. Z3 divides so by positive constants; else the results get names."""
        if z3.is_int_value(b) and b.as_long() > 0:
            return a / b, a % b
        division = self.recorder.divide(z3.simplify(a), z3.simplify(b))
        return division.quotient, division.remainder

    def _cast(self, e: tirx.Cast) -> Value:
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
            self.recorder.require("cast", f"{printed(e.value)} fits {target}", fits(term, target))
        return term

    def _cut_off(self, e: tirx.Cast, value: z3.ArithRef) -> z3.BoolRef:
        """Return that a cast float is between the constants that bound it; Unsupported if these do not fit the type."""
        low, high = interval(e.value, {})
        least, most = span(str(e.dtype))
        if not (least - 1 < low and high < most + 1):
            raise Unsupported(f"a cast to {e.dtype} of a float that no constants keep within its range: {printed(e)}")
        return z3.And(value >= math.trunc(low), value <= math.trunc(high))

    def _comparison(self, e: tirx.PrimExpr) -> Value:
        a, b, relation = self.value(e.a), self.value(e.b), _of_python(e)
        if a is None or b is None:  # of floats: either outcome
            return self.opaque("comparison", "bool")
        if z3.is_bool(a) and z3.is_bool(b) and isinstance(e, (tirx.EQ, tirx.NE)):
            return relation(a, b)
        return relation(number(a), number(b))

    def _connective(self, e: tirx.And | tirx.Or) -> Value:
        """Return a conjunction or a disjunction; the second operand, unless of vectors, is evaluated if it matters."""
        a, both = self.boolean(e.a), isinstance(e, tirx.And)
        matters = [] if lanes(str(e.dtype)) > 1 else [a if both else z3.Not(a)]
        with self.recorder.under(*matters):
            b = self.boolean(e.b)
        return z3.And(a, b) if both else z3.Or(a, b)

    def _choice(self, parts: Sequence[tirx.PrimExpr], *, lazily: bool) -> Value:
        """Return one of two values by a condition; both are evaluated, or one ``lazily``."""
        c = self.boolean(parts[0])
        values = []
        for guard, arm in ((c, parts[1]), (z3.Not(c), parts[2])):
            with self.recorder.under(*([guard] if lazily else [])):
                values.append(self.value(arm))
        return None if any(v is None for v in values) else z3.If(c, *values)

    def _lane(self, count: int) -> z3.ArithRef:
        if count not in self.lane:
            name = self.recorder.unique("lane")
            self.lane[count] = Variable(name, "lane", z3.IntVal(0), z3.IntVal(count))
            self.recorder.variables.append(self.lane[count])  # the walker takes it off after the statement
        return self.lane[count].term

    def _load(self, e: tirx.BufferLoad) -> Value:
        if e.predicate is not None:
            raise Unsupported(f"predicated load {printed(e)}")
        indices, dtype = self.access("read", e.buffer, e.indices), str(e.dtype)
        if not is_integer(dtype):
            return None
        if self.kept(e.buffer):  # a function of its index
            tensor, boolean = e.buffer.data.name, dtype.startswith("bool")
            sorts = [*(z3.IntSort() for _ in indices), z3.BoolSort() if boolean else z3.IntSort()]
            element = z3.Function(tensor, *sorts)(*indices)
            known = [] if boolean else [fits(element, dtype), *self.hypotheses.of_element(tensor, indices, element)]
            self.recorder.facts += known
            return element
        if e.buffer.scope().startswith("local"):
            return self.locals.read((hash(e.buffer.data), str(e.buffer.dtype)), indices)
        return self.shared(e.buffer, indices)

    def depends(self, e: tirx.PrimExpr, value: Value) -> tuple[z3.ExprRef, ...] | None:
        """Return terms of which a value is a function: itself, or the variables that it is computed from.

        Buffers that hold the same in all threads of a block depend on what these have in common.
        """
        inside = nodes(e)
        loads = [n.buffer for n in inside if isinstance(n, tirx.BufferLoad)]
        known = all(self.kept(b) or hash(b.data) in self.common for b in loads)
        known &= all(bool(OF_OPERANDS.fullmatch(called(n))) for n in inside if isinstance(n, tirx.Call))
        if value is not None and (not known or all(map(self.kept, loads))):
            return (value,)
        terms = [self.value(n) for n in inside if isinstance(n, tirx.Var)] + [lane.term for lane in self.lane.values()]
        return tuple(t for t in terms if t is not None) if known and None not in terms else None


def _of_python(e: tirx.PrimExpr) -> Callable[..., z3.ExprRef]:
    """Return the operator of Python that bears the name of one of the IR's: add, sub, mul, eq, ne, lt, le, gt, ge."""
    return getattr(operator, type(e).__name__.lower())  # type: ignore[no-any-return]
