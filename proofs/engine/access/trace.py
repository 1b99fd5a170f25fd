"""What a walk over a kernel records: accesses, arithmetic, events, and the variables and guards around them."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import z3

from ..base.conditions import Condition, Site
from ..base.errors import Unsupported
from ..compiler.instructions import Does

Mode = Literal["read", "write"]
Kind = Literal["block", "thread", "loop", "lane"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Required = Literal["overflow", "division", "cast", "assume", "value"]


@dataclass(frozen=True)
class Variable:
    """An integer that tells executions of one statement apart: an index, a loop variable, or the lane of a vector."""

    name: str  # in the kernel, made unique
    kind: Kind
    low: z3.ArithRef  # its smallest value
    extent: z3.ArithRef | None  # how many values it takes; None when unbounded (the iteration of a while loop)

    @property
    def term(self) -> z3.ArithRef:
        """The variable in formulas."""
        return z3.Int(self.name)

    @property
    def count(self) -> z3.ArithRef:
        """How many values it takes; Unsupported if it is unbounded."""
        if self.extent is None:
            raise Unsupported(f"{self.name} has no bound")
        return self.extent

    @cached_property
    def range(self) -> z3.BoolRef:
        """It lies in its range."""
        below = [] if self.extent is None else [self.term < z3.simplify(self.low + self.extent)]
        return z3.And(self.term >= self.low, *below)


@dataclass(frozen=True)
class Context:
    """Where execution stands: the variables in scope, what is true of values read, and the guards passed."""

    variables: tuple[Variable, ...]
    facts: tuple[z3.BoolRef, ...]  # true whatever the guards: the range of a type, the contract of a tensor's elements
    guards: tuple[z3.BoolRef, ...]
    site: Site

    @property
    def path(self) -> tuple[z3.BoolRef, ...]:
        """Everything that holds here beyond the contract."""
        return (*(v.range for v in self.variables), *self.facts, *self.guards)


@dataclass(frozen=True)
class Region:
    """Memory that an access may touch: a buffer of some shape, at a byte offset in an allocation."""

    name: str  # of the buffer
    scope: str  # "global", "shared", "shared.dyn", "local", ...
    bits: int  # the width of an element
    shape: tuple[z3.ArithRef, ...]
    allocation: str  # its name; buffers of one allocation may overlap
    offset: int  # where the buffer begins in it, in bytes

    @property
    def shared(self) -> bool:
        """Whether the threads of a block share it."""
        return self.scope.startswith("shared")


@dataclass(frozen=True)
class Access:
    """One read or write of one element. In a vector instruction the lane is among the variables."""

    mode: Mode
    region: Region
    indices: tuple[z3.ArithRef, ...]
    context: Context
    collective: bool = False  # whether a warp runs it as one, so that any of its threads may be the one that accesses
    intrinsic: str | None = None  # an unmodelled instruction that it belongs to; when it happens is then not known
    # terms of which the stored value is a function, the same at each execution; None where it may depend on more
    depends: tuple[z3.ExprRef, ...] | None = None
    common: Collection[str] = field(default=(), compare=False)  # names that mean the same in all threads of a block

    def __str__(self) -> str:
        return f"{self.mode} of {self.region.name}"


@dataclass(frozen=True)
class Division:
    """A division, rounding down, by something that varies: its quotient and remainder as integers of their own."""

    dividend: z3.ArithRef
    divisor: z3.ArithRef
    quotient: z3.ArithRef
    remainder: z3.ArithRef

    @property
    def parts(self) -> tuple[z3.ArithRef, z3.ArithRef]:
        """Quotient and remainder."""
        return self.quotient, self.remainder

    @property
    def definition(self) -> z3.BoolRef:
        """What makes them quotient and remainder, unless the divisor is zero."""
        b, r = self.divisor, self.remainder
        sum_ = self.dividend == b * self.quotient + r
        return z3.Implies(b != 0, z3.And(sum_, z3.If(b > 0, z3.And(r >= 0, r < b), z3.And(r <= 0, r > b))))


@dataclass(frozen=True)
class Event:
    """An instruction that orders accesses."""

    does: Does
    call: Any  # in the compiler's IR
    numbers: tuple[z3.ExprRef | None, ...]  # its arguments, where they are integers
    operands: tuple[str | None, ...]  # the allocations that its arguments name
    accesses: tuple[Access, ...]  # those that its arguments make
    context: Context

    @property
    def whole(self) -> bool:
        """Whether it is a barrier of all threads of the block."""
        return self.does == "barrier" and len(self.call.args) == 1


@dataclass
class Segment:
    """Accesses with no event between them."""

    accesses: list[Access] = field(default_factory=list)


@dataclass(frozen=True)
class Loop:
    """A loop. All threads of the block run its iterations in step if there is a barrier of the block in its body."""

    variable: Variable
    body: list[Node]


@dataclass(frozen=True)
class Branch:
    """An if statement. All threads of the block take the same arm if there is a barrier of the block in it."""

    condition: z3.BoolRef
    arms: tuple[list[Node], list[Node]]


Node = Segment | Event | Loop | Branch
_RESERVED = {"_", "as", "let", "par", "exists", "forall", "match", "assert", "push", "pop", "reset", "exit"}


def value_of(construct: str) -> str:
    """Return the name of an unknown for what a construct that is not modelled gives: one of its own, and no variable's."""
    return f"{construct}()"


@dataclass(eq=False)
class Trace:
    """Everything that one kernel does, as far as it is modelled, and where execution stands while it is recorded."""

    accesses: list[Access] = field(default_factory=list)  # in program order
    obligations: list[Condition] = field(default_factory=list)  # such as that an operation on integers does not wrap
    launch: dict[str, Variable] = field(default_factory=dict)  # grid and block, by CUDA name ("blockIdx.x", ...)
    shared_bytes: dict[str, int] = field(default_factory=dict)  # of each allocation of shared memory
    static: set[str] = field(default_factory=set)  # those of them whose size is fixed in the code
    nodes: list[Node] = field(default_factory=list)  # accesses, those of products too, as flow and events divide them
    divisions: list[Division] = field(default_factory=list)  # by divisors that vary
    unmodelled: set[str] = field(default_factory=set)  # names of the intrinsics that are not modelled
    elections: list[Context] = field(default_factory=list)  # where threads elect one, under a guard or in a loop
    variables: list[Variable] = field(default_factory=list)  # in scope now, as facts and guards are
    facts: list[z3.BoolRef] = field(default_factory=list)
    guards: list[z3.BoolRef] = field(default_factory=list)
    _names: dict[str, Iterator[int]] = field(default_factory=dict)
    _required: set[tuple[object, ...]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.site, self.block = Site(""), self.nodes  # the list that is being filled

    def unique(self, name: str) -> str:
        """Return the name itself the first time, then with a number, which a word of SMT-LIB has from the first."""
        number = next(self._names.setdefault(name, itertools.count(name in _RESERVED)))
        return f"{name}#{number + 1}" if number else name

    @property
    def context(self) -> Context:
        """Where execution stands."""
        return Context(tuple(self.variables), tuple(self.facts), tuple(self.guards), self.site)

    @contextmanager
    def under(self, *guards: z3.BoolRef) -> Iterator[None]:
        """Let the guards hold within. Facts learnt within stay."""
        depth = len(self.guards)
        self.guards += guards
        yield
        del self.guards[depth:]

    @contextmanager
    def over(self, *variables: Variable) -> Iterator[None]:
        """Bring variables into scope within. Facts learnt there may speak of them and are dropped after."""
        depth, facts = len(self.variables), len(self.facts)
        self.variables += variables
        yield
        del self.variables[depth:], self.facts[facts:]

    @contextmanager
    def into(self, block: list[Node]) -> Iterator[None]:
        """File events and accesses within in ``block``."""
        outer, self.block = self.block, block
        yield
        self.block = outer

    def access(self, access: Access) -> None:
        """File an access."""
        self.accesses.append(access)
        self.place(access)

    def place(self, access: Access) -> None:
        """Put an access in its place between events, no more."""
        if not self.block or not isinstance(self.block[-1], Segment):
            self.block.append(Segment())
        self.block[-1].accesses.append(access)  # type: ignore[union-attr]

    def divide(self, a: z3.ArithRef, b: z3.ArithRef) -> Division:
        """Return quotient and remainder of two terms, the same for the same terms."""
        known = [d for d in self.divisions if d.dividend.eq(a) and d.divisor.eq(b)]
        if not known:
            names = (self.unique(" ".join(f"({a} {o} {b})".split())) for o in ("//", "%"))
            known = [Division(a, b, *(z3.Int(n) for n in names))]
            self.divisions += known
        self.facts.append(known[0].definition)
        return known[0]

    def require(self, kind: Required, statement: str, goal: z3.BoolRef) -> None:
        """File something that must hold here, once for each guard that it is met under."""
        goal = z3.simplify(goal)
        key = (kind, goal.get_id(), *(g.get_id() for g in self.guards), *(v.name for v in self.variables))
        if not z3.is_true(goal) and key not in self._required:
            self._required.add(key)
            self.obligations.append(Condition(kind, statement, self.context.path, goal, self.site))
