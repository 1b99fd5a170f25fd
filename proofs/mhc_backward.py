"""What is claimed of the backward of what reads the residual streams.

The kernels stand in kernels/mhc_pre_backward.py and kernels/mhc_gates_backward.py. Most are compared with their own step of
the formula, in torch. Two go through the tokens of a chunk, tile by tile; tile u of the chunk is tile τ(u) of all. In the one
that reads the streams the sums have before iteration t, for column k of a block and coefficient m, with 0 in place of what
lies beyond the last token,

    acc_fn[k, m] = Σ_{u < t} Σ_{r < 64} ū(64 τ(u) + r, m) x(64 τ(u) + r, k),

and in the one of the sums for scale and base likewise, of 16 tokens at a time. Each tile is in one chunk, so that the sums of
all chunks, which two further kernels add up, are those over all tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from operator import add
from typing import Any

import torch
import z3

from ..kernels import mhc_gates_backward as gates
from ..kernels import mhc_pre_backward as kernels
from ..kernels.build import PASS_CONFIGS
from ..kernels.mhc_project import COLUMNS, TOKENS
from ..reference import mhc as reference
from ..reference.contract import Contract, Elements, Static
from .attention import at_least
from .attention_lemmas import PARTITION
from .engine.base.conditions import Condition
from .engine.base.report import LAYERS
from .engine.execution.invariants import Determined, Invariant, State
from .engine.execution.symbolic import block, execute
from .engine.forms import normal_form as nf
from .engine.forms import sums
from .engine.forms.entailment import Facts
from .engine.forms.extended import Value
from .engine.forms.normal_form import ZERO, Form
from .engine.layers.lemmas import Theorem, lemma
from .engine.reference.symbolic_torch import SymbolicTensor
from .engine.verify import Compare, Compared
from .mhc_pre import BY_GROUPS, SEQUENCE, Config, of_all, of_tokens, projected, statics, step, sums_of, tiled, weights
from .suite import Proof

Formula = Callable[..., Any]
Reading = tuple[Any, Contract, Formula]
"""A factory, the contract of its kernels, and the formula."""


def _side_by_side(parts: list[Any]) -> Any:
    """Return tensors put together along their last dimension: torch.cat, also of symbolic ones, whose elements can be taken."""
    if not isinstance(parts[0], SymbolicTensor):
        return torch.cat(parts, -1)
    sizes = [int(part.form_shape[-1].constant) for part in parts]
    starts = [sum(sizes[:at]) for at in range(len(sizes))]

    def element(*index: Form) -> Value:
        *before, at = index

        def within(start: int, size: int) -> Form:
            return nf.nonnegative(at - start) * nf.nonnegative(start + size - 1 - at)

        each = zip(parts, starts, sizes, strict=True)
        return Value(reduce(add, [within(start, size) * part.at(*before, at - start) for part, start, size in each]))

    return SymbolicTensor((*parts[0].form_shape[:-1], nf.form(sum(sizes))), element)


def _project(cfg: Config) -> Reading:
    grad = reference.MHC_PRE_BWD.inputs[0]
    outputs = *sums_of(cfg), of_tokens("dots", cfg.splits, cfg.hc)
    contract = step("mhc_project_bwd", (grad, reference.X, weights(cfg)[0]), outputs)
    return kernels.mhc_project_bwd, contract, lambda grad_y, x, fn: projected(cfg, x, fn, grad_y)


def _kept(cfg: Config) -> tuple[Any, ...]:
    return of_tokens("mu", cfg.rows), of_tokens("factor"), of_tokens("grad_pre", cfg.hc)


def _normalise(cfg: Config) -> Reading:
    hc = cfg.hc

    def of(total: Any, squares: Any, dots: Any, *affine: Any) -> Any:
        u, square, grad_pre = (reduce(add, [each[:, s] for s in range(cfg.splits)]) for each in (total, squares, dots))
        root = (square / cfg.columns + cfg.norm_eps).sqrt()
        mu, ones = u / root.unsqueeze(-1), root / root
        if cfg.head:
            return mu, ones / root, grad_pre
        scale, base = affine
        return mu, ones / root, grad_pre, (mu[:, 2 * hc :] * scale[2] + base[2 * hc :]).unflatten(-1, (hc, hc))

    inputs = *sums_of(cfg, Elements(low=0)), of_tokens("dots", cfg.splits, hc)
    if cfg.head:
        return gates.mhc_head_normalise, step("mhc_head_normalise", inputs, _kept(cfg)), of
    contract = step("mhc_normalise", (*inputs, *weights(cfg)[1:]), (*_kept(cfg), of_tokens("logits", hc, hc)))
    return gates.mhc_normalise, contract, of


def _gates(cfg: Config) -> Reading:
    hc = cfg.hc

    def of(*given: Any) -> Any:
        *others, mu, factor, grad_pre, scale, base = given
        sigmoid = (mu[:, :hc] * scale[0] + base[:hc]).sigmoid()
        grads = [grad_pre * sigmoid * (1 - sigmoid)]
        if others:
            half = (mu[:, hc : 2 * hc] * scale[1] + base[hc : 2 * hc]).sigmoid()
            grads += [others[0] * 2 * half * (1 - half), others[1].flatten(1)]
        of_mu, first = [part * scale[at] for at, part in enumerate(grads)], (0, hc, 2 * hc)
        sizes = (hc, hc, hc * hc)[: len(grads)]
        columns = [(part[:, m], mu[:, start + m]) for part, start, size in zip(of_mu, first, sizes, strict=False)
                   for m in range(size)]  # fmt: skip
        radial = reduce(add, [grad * value for grad, value in columns])
        grad_u = _side_by_side([part * factor.unsqueeze(-1) for part in of_mu])
        return sigmoid + cfg.eps, grad_u, -radial * factor * factor / cfg.columns, _side_by_side(grads)

    results = (
        of_tokens("pre", hc),
        of_tokens("grad_u", cfg.rows),
        of_tokens("shrink"),
        of_tokens("grad_gates", cfg.rows),
    )
    inputs = *_kept(cfg), *weights(cfg)[1:]
    if cfg.head:
        return gates.mhc_head_gates_bwd, step("mhc_head_gates_bwd", inputs, results), of
    others = of_tokens("grad_post", hc), of_tokens("grad_logits", hc, hc)
    return gates.mhc_gates_bwd, step("mhc_gates_bwd", (*others, *inputs), results), of


def _add_chunks(cfg: Config) -> Reading:
    parts, total = of_all("parts", cfg.chunks, cfg.rows, cfg.columns), of_all("grad_fn", cfg.rows, cfg.columns)
    contract = Contract("mhc_add_chunks", {}, reference.STATICS, (parts,), (total,), ({}, {}))
    return kernels.mhc_add_chunks, contract, lambda parts: reduce(add, [parts[n] for n in range(cfg.chunks)])


def _add_gates(cfg: Config) -> Reading:
    hc, rows, sections = cfg.hc, cfg.rows, 1 if cfg.head else 3

    def of(parts: Any) -> Any:
        of_base, of_scale = (reduce(add, [parts[n, w] for n in range(gates.SUMMED)]) for w in (0, 1))
        each = [range(hc), range(hc, 2 * hc), range(2 * hc, rows)][:sections]
        return _side_by_side([reduce(add, [of_scale[m : m + 1] for m in section]) for section in each]), of_base

    results = of_all("grad_scale", sections), of_all("grad_base", rows)
    inputs = (of_all("sums", gates.SUMMED, 2, rows),)
    return gates.mhc_add_gates, Contract("mhc_add_gates", {}, reference.STATICS, inputs, results, ({}, {})), of


# Chunks of the tokens


def _in_turn() -> Sequence[Condition]:
    """Prove that tile u r + y is the u-th of chunk y of r, and of no other, and that a chunk has those below n."""
    r, u, v, y, z, n, extent = z3.Ints("r u v y z n extent")
    chunks = r >= 1, y >= 0, y < r, z >= 0, z < r
    quotient = z3.And(r * extent <= n + r - 1 - y, n + r - 1 - y < r * extent + r)
    products = z3.Implies(u + 1 <= extent, r * u + r <= r * extent), z3.Implies(u >= extent, r * u >= r * extent)
    return [
        lemma("a tile of a lower number in its chunk has a lower number", u * r + y < v * r + z,
              *chunks, u + 1 <= v, u * r + r <= v * r),
        lemma("a chunk of floor((n + r - 1 - y) / r) tiles has those below n", (u < extent) == (u * r + y < n),
              *chunks, quotient, *products),
    ]  # fmt: skip


IN_TURN = Theorem(
    "in turn", "Of n tiles each is in exactly one of r chunks: tile u r + y is the u-th of chunk y < r, which has "
    "floor((n + r - 1 - y) / r).", _in_turn, "tiles of one number in their chunks differ by that of the chunk"
)  # fmt: skip


class Chunk:
    """The tiles of a block's chunk.

    Attributes:
        tile: how many tokens one has.
        extent: how many tiles there are.
        number: from u below that to the number of one among all tiles.
    """

    def __init__(self, tile: int, extent: Form, number: Callable[[Form], Form]) -> None:
        self.tile, self.extent, self.number = tile, extent, number

    @classmethod
    def in_turn(cls, tile: int, chunks: int) -> Chunk:
        """Return every so many tiles, from the number of the block on."""
        first = block() if chunks > 1 else ZERO
        extent = nf.floordiv(sums.tiles(SEQUENCE, tile) + (chunks - 1) - first, chunks)
        return cls(tile, extent, lambda u: chunks * u + first)

    @classmethod
    def in_a_row(cls, tile: int, chunks: int, facts: Facts) -> Chunk:
        """Return the tiles from floor(n y / chunks) to floor(n (y + 1) / chunks) of n, y the number of the block."""
        tiles, number = sums.tiles(SEQUENCE, tile), block()
        first, end = (nf.floordiv(tiles * n, chunks) for n in (number, number + 1))
        facts.bound(number, nf.form(chunks))
        facts.forget((first, end), (at_least(first, 0), at_least(end, first), at_least(tiles, end)))
        return cls(tile, end - first, lambda u: first + u)

    def summed(self, extent: Form, summand: Callable[[Form], Form]) -> Form:
        """Return the sum over the tokens of the first tiles, 0 in place of what lies beyond the last token."""

        def of_token(u: Form, r: Form) -> Form:
            token = self.tile * self.number(u) + r
            return at_least(SEQUENCE - 1, token) * summand(token)

        return nf.summation(extent, lambda u: nf.summation(self.tile, lambda r: of_token(u, r)))


def _read(cfg: Config) -> tuple[Contract, Compare]:
    hidden, columns = cfg.hidden, COLUMNS
    grad, (fn, *_) = reference.MHC_PRE_BWD.inputs[0], weights(cfg)
    given = of_tokens("pre", cfg.hc), of_tokens("grad_u", cfg.rows), of_tokens("shrink")
    results = reference.gradient_of(reference.X), of_all("parts", cfg.chunks, cfg.rows, cfg.columns)
    contract = step("mhc_read_bwd", (grad, reference.X, fn, *given), results)
    contract = Contract(contract.op, contract.sizes, {**reference.STATICS, "chunks": Static(int, 1, 16)}, contract.inputs,
                        contract.outputs, contract.probes)  # fmt: skip

    def of_fn(stream: Form, column: Form, m: Form) -> Callable[[Form], Form]:
        return lambda token: nf.read("grad_u", token, m) * nf.read("x", token, stream, column)

    def of_x(token: Form, stream: Form, column: Form) -> Value:
        def projection(m: Form) -> Form:
            return nf.read("grad_u", token, m) * nf.read("fn", m, hidden * stream + column)

        direct = nf.read("pre", token, stream) * nf.read("grad_y", token, column)
        radial = nf.read("shrink", token) * nf.read("x", token, stream, column)
        return Value(direct + radial + nf.summation(cfg.rows, projection))

    def compare(kernel: Any, known: Facts) -> Compared:
        chunk = Chunk.in_turn(TOKENS, cfg.chunks)
        stream, first = block("y"), columns * block("z")

        def acc(s: State, k: Form, m: Form) -> Form:
            there = at_least(nf.form(cfg.rows - 1), m)
            return chunk.summed(s.t, lambda token: there * of_fn(stream, first + k, m)(token))

        done = execute(kernel, invariants={"t": Invariant(determined={"acc_fn": Determined(acc)})}, facts=known)

        def parts(_: Form, m: Form, column: Form) -> Value:
            return Value(chunk.summed(chunk.extent, of_fn(stream, column - hidden * stream, m)))

        return done, [*done.equations, *done.compare("grad_x", of_x), *done.compare("parts", parts)]

    return contract, compare


def _sum_gates(cfg: Config) -> tuple[Contract, Compare]:
    inputs = of_tokens("grad_gates", cfg.rows), of_tokens("mu", cfg.rows)
    contract = step("mhc_sum_gates", inputs, (of_all("sums", gates.SUMMED, 2, cfg.rows),))

    def of_base(m: Form) -> Callable[[Form], Form]:
        return lambda token: nf.read("grad_gates", token, m)

    def of_scale(m: Form) -> Callable[[Form], Form]:
        return lambda token: nf.read("grad_gates", token, m) * nf.read("mu", token, m)

    def compare(kernel: Any, known: Facts) -> Compared:
        chunk = Chunk.in_a_row(gates.AHEAD, gates.SUMMED, known)
        summands = {"of_base": of_base, "of_scale": of_scale}
        invariant = Invariant(
            determined={name: Determined(lambda s, m, of=of: chunk.summed(s.t, of(m))) for name, of in summands.items()}
        )
        done = execute(kernel, invariants={"t": invariant}, facts=known)

        def total(_: Form, which: Form, m: Form) -> Value:
            return Value(chunk.summed(chunk.extent, (of_base, of_scale)[int(which.constant or 0)](m)))

        return done, [*done.equations, *done.compare("sums", total)]

    return contract, compare


def backward(cfg: Config, layers: tuple[str, ...] = LAYERS, **more: Any) -> Iterator[Proof]:
    """Yield the kernels of the gradients of a layer's input and coefficients, or of the head."""
    given, wide = statics(cfg), "L2" in layers
    for factory, contract, of in (_project(cfg), _normalise(cfg), _gates(cfg), _add_gates(cfg)):
        equal = tiled(of, contract, BY_GROUPS) if wide else None
        yield Proof("mhc", factory(cfg), contract, given, equal, PASS_CONFIGS, layers=layers, **more)
    lemmas = (PARTITION,) if wide else ()
    contract, compare = _sum_gates(cfg)
    yield Proof("mhc", gates.mhc_sum_gates(cfg), contract, given, compare if wide else None, PASS_CONFIGS,
                layers=layers, lemmas=lemmas, **more)  # fmt: skip


def chunked(cfg: Config, layers: tuple[str, ...] = LAYERS, **more: Any) -> Iterator[Proof]:
    """Yield the kernels that read the streams again, and add up the gradients of fn, for a number of chunks."""
    given, wide = statics(cfg) | {"chunks": cfg.chunks}, "L2" in layers
    lemmas = (IN_TURN,) if wide else ()
    contract, compare = _read(cfg)
    yield Proof("mhc", kernels.mhc_read_bwd(cfg), contract, given, compare if wide else None, PASS_CONFIGS,
                layers=layers, lemmas=lemmas, **more)  # fmt: skip
    factory, contract, of = _add_chunks(cfg)
    contract = Contract(contract.op, {}, {**reference.STATICS, "chunks": Static(int, 1, 16)}, contract.inputs,
                        contract.outputs, contract.probes)  # fmt: skip
    added = tiled(of, contract) if wide else None
    yield Proof("mhc", factory(cfg), contract, given, added, PASS_CONFIGS, layers=layers, **more)
