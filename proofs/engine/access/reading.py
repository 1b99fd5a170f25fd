"""Integer expressions of the compiler's IR as mathematical integers, with an obligation wherever a machine differs.

An expression that is not an integer (a float, a pointer) has no value here: ``None``. Its operands are still visited
for the accesses and the arithmetic in them. Vectors are read lane by lane: a ramp is ``base + lane * stride`` with
``lane`` a variable of the statement. What is known on the way is here too: buffers, integers, what each thread keeps.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import z3
from tvm import tirx

from ..base.dtypes import bits, fits, is_integer, lanes, number, span
from ..base.errors import Unsupported
from ..compiler.instructions import MATHEMATICS
from ..compiler.nodes import called, nodes
from ..compiler.source_text import printed
from ..contract.hypotheses import Hypotheses
from . import intrinsics
from .instances import names
from .private import Key, LocalState, Place, interval, place
from .trace import Access, Context, Mode, Region, Trace, Variable, value_of
from .wgmma import Descriptor

_FUNCTIONS = "if_then_else|exp2?|log2?|r?sqrt|sigmoid|tanh|fabs|floor|ceil|pow|bitwise_\\w+|shift_\\w+"
OF_OPERANDS = re.compile(
    rf"tirx\.({_FUNCTIONS})|{MATHEMATICS.pattern}"
)  # calls whose value is a function of their operands
HELD = "held "  # in the name of what stands for a float in private memory
Value: TypeAlias = z3.ExprRef | None
Terms: TypeAlias = tuple[z3.ExprRef, ...] | None
_LOST = "private memory that a loop changes"  # how often is not known


class Reading:
    """A reading of expressions as terms. Accesses and obligations met on the way are filed with the recorder.

    ``hypotheses`` is what is known of the elements of tensors; ``written`` names the global buffers that the kernel writes,
    or passes to an instruction that might; ``bound`` are the variables that it binds, no sizes whatever their names.
    """

    def __init__(self, recorder: Trace, hypotheses: Hypotheses, written: frozenset[str], bound: frozenset[int]) -> None:
        self.recorder, self.hypotheses, self.written, self._bound = recorder, hypotheses, written, bound
        self.values: dict[int, Value] = {}  # by the identity of the IR's variable
        self.regions: dict[int, tuple[str, int]] = {}  # data pointer -> allocation and byte offset in it
        self.buffers: dict[int, tirx.Buffer] = {}  # data pointer -> a buffer declared on it
        self.locals = LocalState(self._private, self._followed)
        self.counters: Mapping[int, tuple[z3.ArithRef, z3.ArithRef]] = {}  # data pointer -> least and largest value
        self.kept_by_threads: frozenset[int] = frozenset()  # data pointers of private integers that are stored
        self.lane: dict[int, Variable] = {}
        self.descriptors: dict[int, Descriptor] = {}  # data pointer -> the operand of a product
        self.reads: dict[tuple[Key, Place], Value] = {}  # of shared memory, since something may have changed it
        self.common: set[str] = set()  # constants that are the same in all threads of a block, once the walk is over
        self._held: dict[str, int] = {}  # constants that stand for elements set before, with their data pointers
        self._taken_as: dict[int, set[tuple[str, str]]] = {}  # private data pointer -> how many elements, and type
        self._stores: list[tuple[int, Terms, Context]] = []  # to a thread's own memory
        self.origins: dict[int, str] = {}  # data pointer -> the name of what is read, if that is not modelled
        self._quiet = False

    def value(self, e: tirx.PrimExpr) -> Value:
        """Return the value of an expression; None unless it is an integer or a boolean."""
        match type(e).__name__:
            case "IntImm":
                return z3.BoolVal(bool(e.value)) if str(e.dtype) == "bool" else z3.IntVal(int(e.value))
            case "FloatImm" | "StringImm":
                return None
            case "Not":
                return z3.Not(self.boolean(e.a))
            case "Select":
                return self._choice((e.condition, e.true_value, e.false_value), lazily=False)
            case "Call" if called(e) == "tirx.if_then_else":
                return self._choice(e.args, lazily=True)
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
            case name if name in _READ:
                return _READ[name](self, e)
        raise Unsupported(f"expression {type(e).__name__}: {printed(e)}")

    def _variable(self, e: tirx.Var) -> Value:
        if hash(e) in self.values:
            return self.values[hash(e)]
        if hash(e) not in self._bound and e.name in self.hypotheses.sizes:  # lowering renews sizes, not their names
            return self.hypotheses.sizes[e.name]
        if is_integer(str(e.dtype)):
            raise Unsupported(f"{e.name} is neither bound in the kernel nor a size of the contract")
        return None

    def _binary(self, e: tirx.PrimExpr) -> Value:
        """Return what an operator makes of two integers; None if they are no integers."""
        name = type(e).__name__
        if not is_integer(str(e.dtype)):
            self.value(e.a)
            self.value(e.b)
            return None
        a, b = self.integer(e.a), self.integer(e.b)
        if name in ("Min", "Max"):
            return z3.If(a <= b if name == "Min" else a >= b, a, b)
        return self.checked(e, _of_python(e)(a, b)) if name in ("Add", "Sub", "Mul") else self._divided(e, a, b)

    def _divided(self, e: tirx.PrimExpr, a: z3.ArithRef, b: z3.ArithRef) -> z3.ArithRef:
        """Return the quotient or the remainder, rounded down or, of Div and Mod, towards zero."""
        if not self._quiet:
            self.recorder.require("division", f"{printed(e)} does not divide by zero", b != 0)
        if fixed := z3.is_int_value(b) and b.as_long() > 0:
            quotient, remainder = a / b, a % b  # Z3 rounds down so
        else:
            quotient, remainder = self.recorder.divide(z3.simplify(a), z3.simplify(b)).parts
        if isinstance(e, (tirx.Div, tirx.Mod)):  # as in C: down, and up again where a remainder is left below zero
            up = z3.And(remainder != 0, (a < 0) != (b < 0))
            quotient, remainder = z3.If(up, quotient + 1, quotient), z3.If(up, remainder - b, remainder)
        if not fixed:  # the smallest integer over -1 overflows
            quotient = self.checked(e, quotient)
        return quotient if isinstance(e, (tirx.Div, tirx.FloorDiv)) else remainder

    def _cast(self, e: tirx.Cast) -> Value:
        source, target = str(e.value.dtype), str(e.dtype)
        if not is_integer(source) or not is_integer(target):
            self.value(e.value)
            value = self.opaque("cast", target)
            if isinstance(value, z3.ArithRef):  # between the constants that bound the float
                (low, high), (least, most) = interval(e.value, {}), span(target)
                if not (least - 1 < low and high < most + 1):
                    what = f"a cast to {target} of a float that no constants keep within its range"
                    raise Unsupported(f"{what}: {printed(e)}")
                self.recorder.facts.append(z3.And(value >= math.trunc(low), value <= math.trunc(high)))
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
        if e.buffer.scope().startswith("local"):
            self.keep(e.buffer)
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

    def depends(self, e: tirx.PrimExpr, value: Value) -> Terms:
        """Return terms of which a value is a function: itself, or the variables and private memory that it is computed from."""
        inside = nodes(e)
        loads = [n.buffer for n in inside if isinstance(n, tirx.BufferLoad) and not self.kept(n.buffer)]
        if value is not None:
            return (value,)
        if not all(OF_OPERANDS.fullmatch(called(n)) for n in inside if isinstance(n, tirx.Call)):
            return None
        held = {f"{HELD}{hash(b.data)}": hash(b.data) for b in loads if self.locals.is_set(hash(b.data))}
        self._held |= held
        terms = [self.value(n) for n in inside if isinstance(n, tirx.Var)] + [lane.term for lane in self.lane.values()]
        known = len({hash(b.data) for b in loads}) == len(held) and None not in terms
        return (*terms, *map(z3.Int, held)) if known else None

    def keep(self, buffer: tirx.Buffer, stored: Terms | Literal[False] = False) -> None:
        """Take note of a use of a thread's own memory, or of what a store to it is a function of."""
        data, size = hash(buffer.data), z3.simplify(z3.Product([z3.IntVal(1), *map(self.constant, buffer.shape)]))
        self._taken_as.setdefault(data, set()).add((str(size), str(buffer.dtype)))
        if stored is not False:
            self._stores.append((data, stored, self.recorder.context))

    def settle(self, given: Collection[int]) -> None:
        """Find which private buffers are common: hold the same in all threads of a block, at one statement in one iteration.

        These are of one element, not ``given`` to calls, and all stores to them are of common values, under common
        conditions and in common loops. What is computed from block indices, loop variables, tensors that the kernel only
        reads and common buffers is common. Then the threads make the same stores in the same order.
        """
        single = {d for d, types in self._taken_as.items() if len(types) == 1 and min(types)[0] == "1"}
        held, lost = single - {*given}, {0}
        while lost:
            self.common.clear()
            self.common |= {name for name, data in self._held.items() if data in held}
            lost = {d for d, terms, here in self._stores if d in held and not self._alike(terms, here)}
            held -= lost

    def _alike(self, terms: Terms, here: Context) -> bool:
        """Return whether all threads of a block store the same, as often."""
        if terms is None or any(v.kind == "lane" for v in here.variables):
            return False
        ranges = [t for v in here.variables if v.kind == "loop" for t in (v.low, v.extent) if t is not None]
        known = {*self.hypotheses.sizes, *self.common, *(v.name for v in here.variables if v.kind in ("block", "loop"))}
        return names([*terms, *here.guards, *ranges]) <= known

    def integer(self, e: tirx.PrimExpr) -> z3.ArithRef:
        """Return the value of an expression that must be an integer."""
        value = self.value(e)
        if value is None:
            raise Unsupported(f"no integer: {printed(e)}")
        return number(value)

    def boolean(self, e: tirx.PrimExpr) -> z3.BoolRef:
        """Return the value of a condition."""
        value = self.value(e)
        if value is None:
            raise Unsupported(f"no condition: {printed(e)}")
        return value if z3.is_bool(value) else value != 0

    def constant(self, e: tirx.PrimExpr) -> z3.ArithRef:
        """Return the value of an expression that no machine evaluates, such as a shape: without obligations."""
        self._quiet, before = True, self._quiet
        value = z3.simplify(self.integer(e))
        self._quiet = before
        return value

    def over_sizes(self, e: tirx.PrimExpr) -> z3.ArithRef:
        """Return the value of an expression of sizes and constants alone; Unsupported if something else is in it."""
        if any(isinstance(node, (tirx.BufferLoad, tirx.Call)) for node in nodes(e)):
            raise Unsupported(f"{printed(e)} is not a matter of sizes")
        return self.constant(e)

    def opaque(self, name: str, dtype: str) -> Value:
        """Return a value of which only the type is known."""
        if not is_integer(dtype):
            return None
        name = self.recorder.unique(name)
        if dtype.startswith("bool"):
            return z3.Bool(name)
        term = z3.Int(name)
        self.recorder.facts.append(fits(term, dtype))
        return term

    def _private(self, key: Key, is_set: bool) -> Value:
        """Return a value read from a thread's own memory."""
        lost = key[0] in self.kept_by_threads and key[0] not in self.counters
        value = self.opaque(self.origins.get(key[0], value_of(_LOST) if lost else "local"), key[1])
        if is_set and value is not None:
            self._held[value.decl().name()] = key[0]
        if is_set and key[0] in self.counters and value is not None and not z3.is_bool(value):
            low, high = self.counters[key[0]]
            self.recorder.facts.append(z3.And(value >= low, value <= high))
        return value

    def _followed(self, data: int) -> int | None:
        """Return the number of elements of a buffer if it is asked which of them are set: for bounds, or if there is one."""
        size = z3.simplify(z3.Product([z3.IntVal(1), *(self.constant(n) for n in self.buffers[data].shape)]))
        known = size.as_long() if z3.is_int_value(size) else -1
        return known if data in self.counters or known == 1 else None

    def region(self, buffer: tirx.Buffer) -> Region:
        """Return where a buffer lies."""
        data = buffer.data
        allocation, offset = self.regions.get(hash(data), (data.name, 0))
        shape, width = tuple(self.constant(n) for n in buffer.shape), bits(str(buffer.dtype))
        if width % 8 and not buffer.scope().startswith("local"):  # two elements of one byte are written together
            raise Unsupported(f"{buffer.name}: elements of {width} bits")
        return Region(buffer.name, buffer.scope(), width, shape, allocation, offset)

    def shared(self, buffer: tirx.Buffer, indices: tuple[z3.ArithRef, ...]) -> Value:
        """Return a value read from memory that other threads write: the same as before if nothing lies between.

        That no other thread writes between is what layer L1 shows.
        """
        at = (hash(buffer.data), str(buffer.dtype)), place(indices)
        if at not in self.reads:
            self.reads[at] = self.opaque(self.origins.get(at[0][0], buffer.name), at[0][1])
        return self.reads[at]

    def access(
        self, mode: Mode, buffer: tirx.Buffer, indices: list[tirx.PrimExpr], depends: Terms = None
    ) -> tuple[z3.ArithRef, ...]:
        """File one read or write of a buffer and return its indices."""
        terms = tuple(self.integer(i) for i in indices)
        access = Access(mode, self.region(buffer), terms, self.recorder.context, depends=depends, common=self.common)
        self.recorder.access(access)
        return terms

    def kept(self, buffer: tirx.Buffer) -> bool:
        """Return whether a buffer is a tensor that the kernel only reads."""
        name = buffer.data.name
        return buffer.scope() == "global" and name in self.hypotheses.shapes and name not in self.written

    def between_constants(self, buffers: Iterable[tirx.Buffer]) -> dict[int, tuple[int, int]]:
        """Return the least and the largest element of each tensor that the kernel only reads, where that is a constant."""
        ranges = ((hash(b.data), self.hypotheses.ranges.get(b.data.name, ())) for b in filter(self.kept, buffers))
        ends = {data: [z3.simplify(e) for e in r if e is not None] for data, r in ranges}
        both = {data: r for data, r in ends.items() if len(r) == 2 and all(map(z3.is_int_value, r))}
        return {data: (low.as_long(), high.as_long() - 1) for data, (low, high) in both.items()}

    def checked(self, e: tirx.PrimExpr, term: z3.ArithRef) -> z3.ArithRef:
        """Return the value of an integer operation, which must fit its type. An unsigned one is taken modulo 2^n."""
        dtype = str(e.dtype)
        if dtype.startswith("uint"):
            return term % 2 ** bits(dtype)
        if not self._quiet:
            self.recorder.require("overflow", f"{printed(e)} does not overflow {e.dtype}", fits(term, str(e.dtype)))
        return term


_READ: Mapping[str, Callable[[Reading, Any], Value]] = {
    **dict.fromkeys(("Var", "SizeVar"), Reading._variable),
    **dict.fromkeys(("Add", "Sub", "Mul", "Min", "Max", "FloorDiv", "FloorMod", "Div", "Mod"), Reading._binary),
    **dict.fromkeys(("EQ", "NE", "LT", "LE", "GT", "GE"), Reading._comparison),
    **dict.fromkeys(("And", "Or"), Reading._connective),
    **{"Cast": Reading._cast, "Call": intrinsics.call, "BufferLoad": Reading._load},
}


def _of_python(e: tirx.PrimExpr) -> Callable[..., z3.ExprRef]:
    """Return the operator of Python that bears the name of one of the IR's: add, sub, mul, eq, ne, lt, le, gt, ge."""
    return getattr(operator, type(e).__name__.lower())  # type: ignore[no-any-return]  # it is a function of that name
