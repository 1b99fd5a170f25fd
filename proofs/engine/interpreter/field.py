"""Numbers of a prime field in the place of the reals: the arithmetic of a second opinion (``second_opinion``).

A number x is held as three: its residue modulo a prime p, its residue modulo p - 1, and a double near it. Sums and products
are taken in all three. With a generator g of the units modulo p, and λ for log2(e),

    exp2(x) mod p = g^x,    exp(x) = exp2(λ x),    log2(y) mod p - 1 = log_g(y),    log(y) = log2(y) / λ

which is why exponents count modulo p - 1. Then exp(a + b) = exp(a) exp(b), and log and exp undo one another, as over the reals.
A residue that has no meaning is NaN, and whatever is computed with it too: both of an infinity or of x / 0, that modulo
p - 1 of an exponential or a quotient, that modulo p of a logarithm. The double decides comparisons and maxima, and says
which numbers are infinite. An equation that follows, in each case of the comparisons, from the laws of sums, products,
quotients, exp and log holds of residues; one that does not fails for residues drawn at random, but for about one in p.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..base.errors import Unsupported

PRIMES = 1_048_127, 1_000_667
"""Below 2^20, so that sums of 4096 products are below 2^52; (p - 1) / 2 is a prime, so that p - 1 has the fewest divisors of 0."""
_ALIKE = 2.0**-22  # the relative distance of constants that are one: a float's rounding of either
_LOG2E = math.log2(math.e)
_NAN = torch.tensor(math.nan, dtype=torch.float64)
_OF_EACH = {
    "__getitem__", "unsqueeze", "squeeze", "reshape", "view", "expand", "flatten", "clone", "contiguous", "cat", "split",
    "unfold", "zeros_like", "new_zeros", "transpose", "permute", "gather",
}  # fmt: skip
"""Functions that move elements or make zeros: they are applied to each part."""
_OF_DOUBLES = {"lt", "le", "gt", "ge", "eq", "ne", "isnan", "isinf", "isfinite", "is_floating_point"}
_UNCHANGED = {"type_as", "to", "float", "double"}  # types of floats are ignored


class PrimeField:
    """A prime, a generator, and what constants are taken for.

    Args:
        prime: a prime below 2^20.
        seed: of all that is drawn: the residues of inputs and of constants that are no integers.
    """

    def __init__(self, prime: int, seed: int) -> None:
        self.moduli = prime, prime - 1
        self._random = torch.Generator().manual_seed(seed)
        self._powers = _powers(prime)
        self._logarithms = torch.zeros(prime, dtype=torch.float64)
        self._logarithms[self._powers.long()] = torch.arange(prime - 1, dtype=torch.float64)
        unit = next(n for n in iter(self._draw, None) if all(math.gcd(n, m) == 1 for m in self.moduli))
        self._scales = {1.0: (1, 1), _LOG2E: (unit, unit), 1 / _LOG2E: tuple(pow(unit, -1, m) for m in self.moduli)}
        self._constants: list[tuple[float, Sequence[int]]] = [(1.0, (1, 1))]

    def _draw(self) -> int:
        return int(torch.randint(1, self.moduli[1], (), generator=self._random))

    def drawn(self, near: Tensor) -> Residues:
        """Return numbers near some doubles, with residues drawn at random; 0 is 0."""
        residues = [torch.randint(m, near.shape, generator=self._random) * (near != 0) for m in self.moduli]
        return Residues(self, [part.double() for part in (*residues, near)])

    def zeros(self, shape: Sequence[int]) -> Residues:
        """Return zeros."""
        return Residues(self, [torch.zeros(*shape, dtype=torch.float64) for _ in range(3)])

    def constant(self, value: float) -> Residues:
        """Return a constant.

        An integer is itself. Of constants closer than 2^-22, the second times log2(e) or log(2) or not, one is the other's
        product. Modulo p any other is its exact value, and modulo p - 1, where it has none, a number drawn for it.
        """
        residues: Sequence[float] = (math.nan, math.nan)
        if math.isfinite(value):
            residues = [math.copysign(1, value) * n % m for n, m in zip(self._residues(abs(value)), self.moduli, strict=True)]
        return Residues(self, [torch.tensor(part, dtype=torch.float64) for part in (*residues, value)])

    def _residues(self, value: float) -> Sequence[int]:
        exact = Fraction(value)
        if exact.denominator == 1:
            return [int(exact) % m for m in self.moduli]
        for known, residues in self._constants:
            for scale, factors in self._scales.items():
                if abs(known * scale - value) <= _ALIKE * value:
                    return [a * b % m for a, b, m in zip(residues, factors, self.moduli, strict=True)]
        prime = self.moduli[0]
        new = exact.numerator * pow(exact.denominator, -1, prime) % prime, self._draw()
        self._constants.append((value, new))
        return new

    def number(self, value: Any) -> Residues:
        """Return a number of Python, or integers and truth values of torch, as residues; residues as they are."""
        if isinstance(value, Residues):
            return value
        if not isinstance(value, Tensor):
            return self.constant(value)
        near = value.double()
        if not (near == near.round()).all():
            raise Unsupported("floats that are not of the field, in a second opinion")
        return Residues(self, [*(_residue(near, m) for m in self.moduli), near])

    # Functions; what is said of them is over the reals

    def ring(self, function: Callable[..., Tensor], *operands: Any, **options: Any) -> Residues:
        """Apply a function made of sums and products."""
        values = [self.number(x).parts for x in operands]
        near = function(*(v[2] for v in values), **options)
        residues = [_residue(function(*(v[n] for v in values), **options), m) for n, m in enumerate(self.moduli)]
        return Residues(self, [*residues, near])

    def div(self, a: Any, b: Any) -> Residues:
        """Return a / b."""
        (x, _, near), (y, _, by) = self.number(a).parts, self.number(b).parts
        inverse = self._lookup(self._powers, _residue(-self._lookup(self._logarithms, y, y != 0), self.moduli[1]))
        return self._of_prime(_residue(x * inverse, self.moduli[0]), near / by)

    def exp2(self, x: Any) -> Residues:
        """Return 2^x, 0 of -inf."""
        _, exponent, near = self.number(x).parts
        power = self._lookup(self._powers, exponent)
        return self._of_prime(torch.where(exponent.isnan() & (near == -math.inf), 0.0, power), near.exp2())

    def log2(self, x: Any) -> Residues:
        """Return log2(x)."""
        y, _, near = self.number(x).parts
        logarithm = self._lookup(self._logarithms, y, y != 0)
        return Residues(self, [_NAN.expand(near.shape), logarithm, near.log2()])

    def exp(self, x: Any) -> Residues:
        """Return e^x."""
        return self.exp2(self.ring(torch.mul, x, _LOG2E))

    def log(self, x: Any) -> Residues:
        """Return log(x)."""
        return self.ring(torch.mul, self.log2(x), 1 / _LOG2E)

    def sigmoid(self, x: Any) -> Residues:
        """Return 1 / (1 + exp(-x))."""
        return self.div(1, self.ring(torch.add, self.exp(self.ring(torch.neg, x)), 1))

    def softmax(self, x: Any, dim: int) -> Residues:
        """Return exp(x) over its sum."""
        e = self.exp(x)
        return self.div(e, e.sum(dim, keepdim=True))

    def where(self, condition: Tensor, then: Any, otherwise: Any) -> Residues:
        """Return one of two."""
        pairs = zip(self.number(then).parts, self.number(otherwise).parts, strict=True)
        return Residues(self, [torch.where(condition, a, b) for a, b in pairs])

    def max(self, a: Any, b: Any) -> Residues:
        """Return the larger of two numbers; of a number and a NaN the number."""
        a, b = self.number(a), self.number(b)
        return self.where((a.near >= b.near) | b.near.isnan(), a, b)

    def min(self, a: Any, b: Any) -> Residues:
        """Return the smaller of two numbers; of a number and a NaN the number."""
        a, b = self.number(a), self.number(b)
        return self.where((a.near <= b.near) | b.near.isnan(), a, b)

    def maxnan(self, a: Any, b: Any) -> Residues:
        """Return the larger of two numbers, NaN if one is."""
        a, b = self.number(a), self.number(b)
        return self.where((a.near >= b.near) | a.near.isnan(), a, b)

    def abs(self, x: Any) -> Residues:
        """Return x or -x."""
        return self.where(self.number(x).near < 0, self.ring(torch.neg, x), x)

    def amax(self, x: Residues, dim: int) -> Residues:
        """Return the largest along a dimension."""
        return x.gather(dim, x.near.argmax(dim, keepdim=True)).squeeze(dim)  # type: ignore[no-any-return]

    def amin(self, x: Residues, dim: int) -> Residues:
        """Return the smallest along a dimension."""
        return x.gather(dim, x.near.argmin(dim, keepdim=True)).squeeze(dim)  # type: ignore[no-any-return]

    def nan_to_num(self, x: Residues, nan: float, posinf: float, neginf: float) -> Residues:
        """Return 0 for what is not finite."""
        if (nan, posinf, neginf) != (0, 0, 0):
            raise Unsupported("nan_to_num to another number than 0")
        return self.where(x.near.isfinite(), x, 0)

    def pad(self, x: Residues, widths: Sequence[int], mode: str = "constant", value: object = None) -> Residues:
        """Return what is surrounded by zeros."""
        if mode != "constant" or value not in (None, 0):
            raise Unsupported(f"pad of mode {mode} with {value}, in a second opinion")
        return Residues(self, [torch.nn.functional.pad(part, widths) for part in x.parts])

    def broadcast_tensors(self, *values: Any) -> list[Any]:
        """Return all in their common shape."""
        nears = [v.near if isinstance(v, Residues) else v for v in values]
        shape = torch.broadcast_tensors(*nears)[0].shape  # type: ignore[no-untyped-call]
        return [v.expand(shape) for v in values]

    def _of_prime(self, residue: Tensor, near: Tensor) -> Residues:
        return Residues(self, [residue, _NAN.expand(near.shape), near])

    @staticmethod
    def _lookup(table: Tensor, at: Tensor, good: Tensor | None = None) -> Tensor:
        """Return entries of a table, NaN for what is none or not good."""
        good = ~at.isnan() if good is None else good & ~at.isnan()
        return torch.where(good, table[torch.where(good, at, 0).long()], math.nan)


class Residues:
    """Numbers of a field, as torch and ``Lanes`` take tensors. Functions that are not known are refused by name.

    Args:
        field: the field.
        parts: the residues modulo p and modulo p - 1, and the doubles.
    """

    dtype = torch.float64
    device = torch.device("cpu")

    def __init__(self, field: PrimeField, parts: Sequence[Tensor]) -> None:
        self.field, self.parts = field, tuple(parts)

    @property
    def near(self) -> Tensor:
        """The doubles."""
        return self.parts[2]

    @property
    def shape(self) -> torch.Size:
        """The shape."""
        return self.near.shape

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return self.near.ndim

    @property
    def mT(self) -> Residues:  # noqa: N802  torch's name
        """The transposed matrices."""
        return Residues(self.field, [part.mT for part in self.parts])

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Apply a function of torch."""
        return _apply(function.__name__, args, kwargs or {}, function)

    def __getattr__(self, name: str) -> Any:
        """Return a method of torch's tensors."""
        if not hasattr(Tensor, name):
            raise AttributeError(name)
        return lambda *args, **kwargs: _apply(name, (self, *args), kwargs, getattr(Tensor, name))

    def __setitem__(self, index: Any, value: Residues) -> None:
        """Write elements."""
        for part, new in zip(self.parts, value.parts, strict=True):
            part[index] = new


def _method(name: str) -> Any:
    return lambda *args: _apply(name, args, {}, getattr(Tensor, name))


for _name in ("add", "sub", "mul", "matmul", "truediv", "neg", "lt", "le", "gt", "ge", "eq", "ne", "getitem"):
    setattr(Residues, f"__{_name}__", _method({"truediv": "div", "getitem": "__getitem__"}.get(_name, _name)))
for _name in ("radd", "rmul", "rsub", "rtruediv"):
    setattr(Residues, f"__{_name}__", lambda a, b, name=_name[1:]: getattr(a.field.number(b), f"__{name}__")(a))


def _summed(x: Tensor, *dim: Any, keepdim: bool = False, **_: Any) -> Tensor:
    return x.sum(*dim, keepdim=keepdim) if dim else x.sum()


_RING: dict[str, Callable[..., Tensor]] = {
    "add": torch.add, "sub": torch.sub, "rsub": torch.rsub, "mul": torch.mul, "neg": torch.neg, "matmul": torch.matmul,
}  # fmt: skip


def _apply(name: str, args: Any, kwargs: Any, function: Any) -> Any:
    """Apply a function of torch to residues."""
    field: PrimeField = next(x.field for x in (*args, *_listed(args)) if isinstance(x, Residues))
    if name in _UNCHANGED:
        return args[0]
    if name in _OF_DOUBLES:
        return function(*_part(args, 2), **kwargs)
    if name in _OF_EACH:
        results = [function(*_part(args, n), **kwargs) for n in range(3)]
        split = isinstance(results[0], (tuple, list))
        return [Residues(field, parts) for parts in zip(*results, strict=True)] if split else Residues(field, results)
    if name in _RING:
        return field.ring(_RING[name], *args, **kwargs)
    if name == "sum":
        return field.ring(lambda x: _summed(x, *args[1:], **kwargs), args[0])
    if name == "einsum":
        return field.ring(partial(torch.einsum, args[0]), *args[1:])
    if name == "relu":
        return field.maxnan(args[0], 0)
    if name in _FUNCTIONS:
        return getattr(field, name)(*args, **kwargs)
    raise Unsupported(f"{name}, in a second opinion")


_FUNCTIONS = {
    "div", "exp", "exp2", "log", "log2", "sigmoid", "softmax", "where", "abs", "amax", "amin", "nan_to_num", "pad",
    "broadcast_tensors",
}  # fmt: skip


def _listed(args: Sequence[Any]) -> Sequence[Any]:
    """Return the elements of the first argument, if it is a list."""
    return args[0] if isinstance(args[0], (tuple, list)) else ()


def _part(args: Sequence[Any], n: int) -> list[Any]:
    """Return one part of the residues among arguments, of which the first may be a list."""
    parts = [x.parts[n] if isinstance(x, Residues) else x for x in args]
    return [_part(parts[0], n), *parts[1:]] if isinstance(parts[0], (tuple, list)) else parts


def _residue(x: Tensor, modulus: int) -> Tensor:
    """Return integers below 2^52 modulo one below 2^20; their quotient in doubles has the right floor."""
    return x - (x / modulus).floor() * modulus


def _powers(prime: int) -> Tensor:
    """Return the powers of the least generator of the units modulo a prime, from that to the 0 on."""
    order = prime - 1
    primes = [n for n in range(2, math.isqrt(order) + 1) if order % n == 0]
    divisors = {n for d in primes for n in (d, order // d)}
    generator = next(g for g in range(2, prime) if all(pow(g, n, prime) != 1 for n in divisors))
    powers = torch.ones(1, dtype=torch.int64)
    while len(powers) < order:
        powers = torch.cat([powers, powers * pow(generator, len(powers), prime) % prime])
    return powers[:order].double()
