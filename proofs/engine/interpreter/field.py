"""Numbers of a prime field in the place of the reals: the arithmetic of a second opinion (``second_opinion``).

A number x is held as three: its residue modulo a prime p, its residue modulo p - 1, and a double near it. Sums and products
are taken in all three. With a generator g of the units modulo p, and λ for log2(e),

    exp2(x) mod p = g^x,    exp(x) = exp2(λ x),    log2(y) mod p - 1 = log_g(y),    log(y) = log2(y) / λ

which is why exponents count modulo p - 1. Then exp(a + b) = exp(a) exp(b), and log and exp undo one another, as over the reals.
A residue that has no meaning is NaN, and so is what is computed with it: both of an infinity or of x / 0, that modulo p - 1
of an exponential or a quotient, that modulo p of a logarithm. The double decides comparisons and maxima. An infinity is an
infinite double without a residue. An equation that follows, in each case of the comparisons, from the laws of sums, products,
quotients, exp and log holds of residues. One that does not fails for residues drawn at random, but for about one in p.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..base.errors import Unsupported

PRIMES = 1_048_127, 1_000_667
"""Below 2^20, so that sums of 4096 products are below 2^52; (p - 1) / 2 is a prime, so that few numbers divide 0."""
_ALIKE = 2.0**-22  # the relative distance of constants that are one: each may be a double or rounded to a float
_LOG2E = math.log2(math.e)
_RING: Mapping[str, Callable[..., Tensor]] = {
    "add": torch.add, "sub": torch.sub, "rsub": torch.rsub, "mul": torch.mul, "neg": torch.neg, "matmul": torch.matmul,
}  # fmt: skip
_OF_EACH = {
    "__getitem__", "unsqueeze", "squeeze", "reshape", "view", "flatten", "unflatten", "expand", "clone", "cat", "split",
    "unfold", "zeros_like", "new_zeros", "gather",
}  # fmt: skip
"""Functions that move elements or make zeros: they are applied to each part."""
_OF_DOUBLES = {"lt", "le", "gt", "ge", "eq", "ne", "isnan", "is_floating_point"}
_UNCHANGED = {"type_as", "to", "float"}  # types of floats are ignored


class PrimeField:
    """A prime, a generator, and what constants are taken for.

    Args:
        prime: a prime below 2^20.
        seed: of what is drawn: residues of inputs and of constants.
    """

    def __init__(self, prime: int, seed: int) -> None:
        self.moduli = prime, prime - 1
        self._random = torch.Generator().manual_seed(seed)
        self._powers = _powers(prime)
        self._logarithms = torch.zeros(prime, dtype=torch.float64)
        self._logarithms[self._powers.long()] = torch.arange(prime - 1, dtype=torch.float64)
        unit = next(n for n in iter(self._draw, None) if math.gcd(n, prime - 1) == 1)
        inverse = [pow(unit, -1, m) for m in self.moduli]
        self._factors: Mapping[float, Sequence[int]] = {1.0: (1, 1), _LOG2E: (unit, unit), 1 / _LOG2E: inverse}
        self._constants: list[tuple[float, Sequence[int]]] = [(1.0, (1, 1))]

    def _draw(self) -> int:
        return int(torch.randint(1, self.moduli[1], (), generator=self._random))

    def drawn(self, near: Tensor) -> Residues:
        """Return numbers near some doubles, with residues drawn at random; 0 is 0."""
        residues = [torch.randint(m, near.shape, generator=self._random) * (near != 0) for m in self.moduli]
        return Residues(self, [part.double() for part in (*residues, near)])

    def number(self, value: Any) -> Residues:
        """Return a constant, or integers and truth values of torch, as residues; residues as they are."""
        if isinstance(value, Residues):
            return value
        if isinstance(value, Tensor):
            if value.is_floating_point() and not (value == value.round()).all():
                raise Unsupported("floats that are not of the field, in a second opinion")
            return Residues(self, [*(_residue(value.double(), m) for m in self.moduli), value.double()])
        known = self._constant(abs(value)) if math.isfinite(value) else (math.nan, math.nan)
        residues = [n * math.copysign(1, value) % m for n, m in zip(known, self.moduli, strict=True)]
        return Residues(self, [torch.tensor(part, dtype=torch.float64) for part in (*residues, value)])

    def _constant(self, value: float) -> Sequence[int]:
        """Return the residues of a constant.

        An integer is itself. Any other that equals an earlier one, or that times log2(e) or log(2), to 2^-22 is that. Else
        it is its exact value modulo p, and modulo p - 1, where a half has no meaning, a number drawn for it.
        """
        exact, prime = Fraction(value), self.moduli[0]
        if exact.denominator == 1:
            return [int(exact) % m for m in self.moduli]
        for known, residues in self._constants:
            for factor, factors in self._factors.items():
                if abs(known * factor - value) <= _ALIKE * value:
                    return [a * b % m for a, b, m in zip(residues, factors, self.moduli, strict=True)]
        self._constants.append((value, (exact.numerator * pow(exact.denominator, -1, prime) % prime, self._draw())))
        return self._constants[-1][1]

    def ring(self, function: Callable[..., Tensor], *operands: Any, **options: Any) -> Residues:
        """Apply a function made of sums and products."""
        values = [self.number(x).parts for x in operands]
        parts = [function(*(v[n] for v in values), **options) for n in range(3)]
        return Residues(self, [*map(_residue, parts, self.moduli), parts[2]])

    def div(self, a: Any, b: Any) -> Residues:
        """Return a / b."""
        (x, _, near), (y, _, by) = self.number(a).parts, self.number(b).parts
        inverse = _lookup(self._powers, _residue(-_lookup(self._logarithms, y, y != 0), self.moduli[1]))
        return Residues(self, [_residue(x * inverse, self.moduli[0]), _unknown(near / by), near / by])

    def exp2(self, x: Any) -> Residues:
        """Return 2^x, 0 of -inf."""
        _, exponent, near = self.number(x).parts
        power = torch.where(exponent.isnan() & (near == -math.inf), 0.0, _lookup(self._powers, exponent))
        return Residues(self, [power, _unknown(near), near.exp2()])

    def log2(self, x: Any) -> Residues:
        """Return log2(x)."""
        y, _, near = self.number(x).parts
        return Residues(self, [_unknown(near), _lookup(self._logarithms, y, y != 0), near.log2()])

    def exp(self, x: Any) -> Residues:
        """Return e^x."""
        return self.exp2(self.ring(torch.mul, x, _LOG2E))

    def log(self, x: Any) -> Residues:
        """Return log(x)."""
        return self.ring(torch.mul, self.log2(x), 1 / _LOG2E)

    def sqrt(self, x: Any) -> Residues:
        """Return √x as the power (p + 1) / 4. Then √(x y) = √x √y, but √x √x = x for half of all residues only."""
        y, _, near = self.number(x).parts
        half = _residue(_lookup(self._logarithms, y, y != 0) * ((self.moduli[0] + 1) // 4), self.moduli[1])
        root = torch.where(y == 0, 0.0, _lookup(self._powers, half))
        return Residues(self, [root, _unknown(near), near.sqrt()])

    def rsqrt(self, x: Any) -> Residues:
        """Return 1 / √x."""
        return self.div(1, self.sqrt(x))

    def sigmoid(self, x: Any) -> Residues:
        """Return 1 / (1 + exp(-x)); of a quotient, which is no exponent, an unknown function of its residue modulo p."""
        y, exponent, near = self.number(x).parts
        known = Residues(self, [y, torch.where(exponent.isnan(), y, exponent), near])
        return self.div(1, self.ring(torch.add, self.exp(self.ring(torch.neg, known)), 1))

    def softmax(self, x: Any, dim: int) -> Residues:
        """Return exp(x) over its sum."""
        return self.div(self.exp(x), self.exp(x).sum(dim, keepdim=True))

    def where(self, condition: Tensor, then: Any, otherwise: Any) -> Residues:
        """Return one of two."""
        if not isinstance(condition, Tensor):
            raise Unsupported("where as a method, in a second opinion")
        pairs = zip(self.number(then).parts, self.number(otherwise).parts, strict=True)
        return Residues(self, [torch.where(condition, a, b) for a, b in pairs])

    def masked_fill(self, x: Any, mask: Tensor, value: Any) -> Residues:
        """Return a value where the mask says so."""
        return self.where(mask, value, x)

    def fmax(self, a: Any, b: Any) -> Residues:
        """Return the larger of two numbers; of a number and a NaN the number."""
        x, y = self.number(a), self.number(b)
        return self.where((x.near >= y.near) | y.near.isnan(), x, y)

    def maximum(self, a: Any, b: Any) -> Residues:
        """Return the larger of two numbers; of a number and a NaN the NaN."""
        x, y = self.number(a), self.number(b)
        return self.where((x.near >= y.near) | x.near.isnan(), x, y)

    def fmin(self, a: Any, b: Any) -> Residues:
        """Return the smaller of two numbers; of a number and a NaN the number."""
        x, y = self.number(a), self.number(b)
        return self.where((x.near <= y.near) | y.near.isnan(), x, y)

    def relu(self, x: Any) -> Residues:
        """Return x or 0."""
        return self.maximum(x, 0)

    def amax(self, x: Residues, dim: int) -> Residues:
        """Return the largest along a dimension."""
        return x.gather(dim, x.near.argmax(dim, keepdim=True)).squeeze(dim)  # type: ignore[no-any-return]  # methods come by __getattr__

    def nan_to_num(self, x: Residues, nan: float, posinf: float, neginf: float) -> Residues:
        """Return 0 for what is not finite."""
        if (nan, posinf, neginf) != (0, 0, 0):
            raise Unsupported("nan_to_num to another number than 0, in a second opinion")
        return self.where(x.near.isfinite(), x, 0)

    def sum(self, x: Residues, dim: Any = None, *, keepdim: bool = False, dtype: object = None) -> Residues:
        """Return a sum."""
        return self.ring(lambda part: part.sum(dim, keepdim=keepdim), x)

    def einsum(self, equation: str, *operands: Residues) -> Residues:
        """Return a sum of products."""
        return self.ring(partial(torch.einsum, equation), *operands)

    def pad(self, x: Residues, widths: Sequence[int], mode: str = "constant", value: object = None) -> Residues:
        """Return what is surrounded by zeros."""
        if mode != "constant" or value:
            raise Unsupported(f"pad of mode {mode} with {value}, in a second opinion")
        return Residues(self, [torch.nn.functional.pad(part, widths) for part in x.parts])

    def broadcast_tensors(self, *values: Any) -> list[Any]:
        """Return all in their common shape."""
        nears = [v.near if isinstance(v, Residues) else v for v in values]
        shape = torch.broadcast_tensors(*nears)[0].shape  # type: ignore[no-untyped-call]  # torch's
        return [v.expand(shape) for v in values]


_FUNCTIONS = {name for name in vars(PrimeField) if not name.startswith("_")} - {"drawn", "number", "ring"}


class Residues:
    """Numbers of a field, as torch's functions and ``Lanes`` take tensors. A function that has no meaning is refused by name.

    Args:
        field: the field.
        parts: the residues modulo p and modulo p - 1, and the doubles.
    """

    dtype, device = torch.float64, torch.device("cpu")

    def __init__(self, field: PrimeField, parts: Sequence[Tensor]) -> None:
        self.field, self.parts = field, tuple(parts)
        self.near = self.parts[2]

    @property
    def mT(self) -> Residues:  # noqa: N802  torch's name
        """The transposed matrices."""
        return Residues(self.field, [part.mT for part in self.parts])

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Apply a function of torch."""
        return _apply(function.__name__, args, kwargs or {}, function)

    def __getattr__(self, name: str) -> Any:
        """Return a method of torch's tensors, or the shape."""
        if name in ("shape", "ndim"):
            return getattr(self.near, name)
        if not callable(getattr(Tensor, name, None)):
            raise AttributeError(name)
        return lambda *args, **kwargs: _apply(name, (self, *args), kwargs, getattr(Tensor, name))

    def __setitem__(self, index: Any, value: Residues) -> None:
        """Write elements."""
        for part, new in zip(self.parts, value.parts, strict=True):
            part[index] = new


def _apply(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], function: Any) -> Any:
    """Apply a function of torch to residues, which may be in a list.

    Raises:
        Unsupported: it is none of those that have a meaning here.
    """
    listed = args[0] if isinstance(args[0], (tuple, list)) else ()
    field = next(x.field for x in (*listed, *args) if isinstance(x, Residues))
    args = [[field.number(x) for x in listed], *args[1:]] if listed else args
    types = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.dtype)]
    if any(not t.is_floating_point for t in types) or (types and name == "view"):
        raise Unsupported(f"{name} to another type, in a second opinion")
    if name in _UNCHANGED and all(isinstance(x, (Residues, torch.dtype)) for x in args):
        return args[0]
    if name in _OF_DOUBLES:
        return function(*_part(args, 2), **kwargs)
    if name in _OF_EACH:
        results = [function(*_part(args, n), **kwargs) for n in range(3)]
        several = isinstance(results[0], (tuple, list))
        return [Residues(field, parts) for parts in zip(*results, strict=True)] if several else Residues(field, results)
    if name in _RING:
        return field.ring(_RING[name], *args, **kwargs)
    if name in _FUNCTIONS:
        return getattr(field, name)(*args, **kwargs)
    raise Unsupported(f"{name}, in a second opinion")


def _part(args: Sequence[Any], n: int) -> list[Any]:
    """Return arguments with one part in the place of residues, also in a list that comes first."""
    parts = [x.parts[n] if isinstance(x, Residues) else x for x in args]
    return [_part(parts[0], n), *parts[1:]] if isinstance(parts[0], list) else parts


def _method(name: str) -> Any:
    return lambda *args: _apply(name, args, {}, getattr(Tensor, name, None))  # rsub is a function only


_OPERATORS = {
    **{name: name for name in ("add", "sub", "rsub", "mul", "matmul", "neg", "lt", "le", "gt", "ge", "eq", "ne")},
    **{"radd": "add", "rmul": "mul", "truediv": "div", "getitem": "__getitem__"},
    **{name: f"__{name}__" for name in ("iadd", "isub", "imul", "itruediv")},  # which change what others see: refused
}
for _name, _of in _OPERATORS.items():
    setattr(Residues, f"__{_name}__", _method(_of))
setattr(Residues, "__rtruediv__", lambda b, a: b.field.div(a, b))  # noqa: B010


def _lookup(table: Tensor, at: Tensor, good: Tensor | None = None) -> Tensor:
    """Return entries of a table, NaN for what is none or not good."""
    good = ~at.isnan() if good is None else good & ~at.isnan()
    return torch.where(good, table[torch.where(good, at, 0).long()], math.nan)


def _unknown(like: Tensor) -> Tensor:
    return torch.full_like(like, math.nan)


def _residue(x: Tensor, modulus: int) -> Tensor:
    """Return integers below 2^52 modulo one below 2^20; their quotient in doubles has the right floor."""
    return x - (x / modulus).floor_().mul_(modulus)


def _powers(prime: int) -> Tensor:
    """Return the powers of the least generator of the units modulo a prime, from the 0th on."""
    order = prime - 1
    small = [n for n in range(1, math.isqrt(order) + 1) if order % n == 0]
    divisors = {n for d in small for n in (d, order // d)} - {order}
    generator = next(g for g in range(2, prime) if all(pow(g, n, prime) != 1 for n in divisors))
    powers = torch.ones(1, dtype=torch.int64)
    while len(powers) < order:
        powers = torch.cat([powers, powers * pow(generator, len(powers), prime) % prime])
    return powers[:order].double()
