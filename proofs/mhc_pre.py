"""What is claimed of the kernels that read the residual streams, forward (kernels/mhc_pre.py).

Each is compared with its own step of the formula, in torch:

    mhc_project      the products of each split of the columns with fn, and the sums of squares
    mhc_split        fn, of which rounding leaves nothing over
    mhc_multiply     the products with the sum of all parts, and the sums of squares
    mhc_weigh        the splits added up, times 1 / sqrt(mean + norm_eps), through scale, base and sigmoids; Sinkhorn of the
                     logits; and the sum of the streams with their weights

Put one after the other, these steps are the reference's formula. Where a loop follows, the weights and the logits of a token
are abbreviated, by ``pre`` and ``logit``: the weights in the loop, the logits where they are stored. Sinkhorn is in lock step
with the reference, as in proofs/sinkhorn.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial, reduce
from operator import add
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from ..kernels import mhc_pre, mhc_project
from ..kernels.build import PASS_CONFIGS
from ..kernels.sinkhorn import NAMES
from ..reference import mhc as reference
from ..reference.contract import Contract, Elements, Size, TensorSpec
from ..reference.sinkhorn import sinkhorn
from .engine.base.report import LAYERS
from .engine.execution.abbreviations import Abbreviate, Abbreviating, Abbreviation
from .engine.execution.invariants import Determined, Ghost, Invariant
from .engine.execution.symbolic import block, execute
from .engine.forms import normal_form as nf
from .engine.forms.entailment import Facts
from .engine.forms.extended import Value
from .engine.forms.normal_form import Form
from .engine.interpreter.interpret import interpret
from .engine.layers.comparison import against, symbolic_input
from .engine.layers.lemmas import Lemma, Tested
from .engine.reference.recurrences import cutting, recurrence, resolve
from .engine.reference.symbolic_torch import SymbolicTensor, tensor
from .engine.semantics.semantics import serial_loops
from .engine.verify import Compare, Compared
from .suite import Proof

Config = mhc_project.Config
Formula = Callable[..., Any]
Tiling = tuple[int, int, bool]
F32, BF16 = (torch.float32,), (torch.bfloat16,)
SAFE = ("L0", "L1")
TOKENS = {"tokens": Size(1, reference.SIZES["tokens"].high)}
SEQUENCE = nf.variable("tokens")


def tiled(of: Formula, contract: Contract, *tilings: Tiling) -> Compare:
    """Return the comparison with a reference whose sums are taken tile by tile: extent, tile, and whether exchanged."""

    def compare(kernel: Any, known: Facts) -> Compared:
        with ExitStack() as stack:
            for extent, tile, strided in tilings:
                stack.enter_context(nf.tiled(extent, tile, strided=strided))
            return against(of, contract)(kernel, known)

    return compare


def step(op: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Contract:
    """Return the contract of a kernel that takes the tokens of all sequences as one."""
    return Contract(op, TOKENS, reference.STATICS, inputs, outputs, reference.PROBES)


ANY = Elements()


def of_tokens(name: str, *dims: int, elements: Elements = ANY) -> TensorSpec:
    """Return a tensor of fp32 with something for each token."""
    return TensorSpec(name, " ".join(("tokens", *map(str, dims))), F32, elements)


def of_all(name: str, *dims: int) -> TensorSpec:
    """Return a tensor of fp32 that all tokens share."""
    return TensorSpec(name, " ".join(map(str, dims)), F32)


def statics(cfg: Config) -> dict[str, float]:
    """Return the static parameters that name a proof."""
    given: dict[str, float] = {"hc": cfg.hc, "hidden": cfg.hidden}
    return given | ({"head": 1} if cfg.head else {})


def weights(cfg: Config) -> tuple[TensorSpec, TensorSpec, TensorSpec]:
    """Return fn, scale and base."""
    return of_all("fn", cfg.rows, cfg.columns), of_all("scale", 1 if cfg.head else 3), of_all("base", cfg.rows)


# Projections


def projected(cfg: Config, x: torch.Tensor, fn: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the products with fn of each split of the columns, its sums of squares, and its products with other rows."""
    shape = cfg.splits, cfg.tiles, mhc_project.COLUMNS
    x, fn = x.float().unflatten(-1, shape), fn.view(cfg.rows, cfg.hc, *shape)  # type: ignore[no-untyped-call]
    tiles = [(i, t) for i in range(cfg.hc) for t in range(cfg.tiles)]
    sums = [torch.einsum("nsk,msk->nsm", x[:, i, :, t], fn[:, i, :, t]) for i, t in tiles]
    squares = [torch.einsum("nsk,nsk->ns", x[:, i, :, t], x[:, i, :, t]) for i, t in tiles]
    rows = [row.float().unflatten(-1, shape) for row in others]  # type: ignore[no-untyped-call]
    return (
        reduce(add, sums),
        reduce(add, squares),
        *(
            reduce(add, [torch.einsum("nisk,nsk->nsi", x[:, :, :, t], row[:, :, t]) for t in range(cfg.tiles)])
            for row in rows
        ),
    )


def sums_of(cfg: Config, elements: Elements = ANY) -> tuple[TensorSpec, TensorSpec]:
    """Return the products and the sums of squares, which those that read them know not to be negative."""
    return of_tokens("sums", cfg.splits, cfg.rows), of_tokens("squares", cfg.splits, elements=elements)


BY_GROUPS: Tiling = (mhc_project.COLUMNS, mhc_project.WIDTH, False)
"""How a block sums over the columns of a tile what it does not multiply on tensor cores."""


def _project(cfg: Config) -> tuple[Contract, Formula]:
    contract = step("mhc_project", (reference.X, weights(cfg)[0]), sums_of(cfg))
    return contract, lambda x, fn: projected(cfg, x, fn)


def parts_of(cfg: Config) -> TensorSpec:
    """Return the parts of fn, of which those of the rows that fill up are not read."""
    return TensorSpec("parts", f"{mhc_project.PARTS} {cfg.padded} {cfg.columns}", BF16)


def _split(cfg: Config) -> tuple[Contract, Formula]:
    """Return the contract of ``mhc_split``, and that over the reals all of fn is its first part, zeros where rows fill up."""

    def of(fn: torch.Tensor) -> torch.Tensor:
        rows = torch.nn.functional.pad(fn, (0, 0, 0, cfg.padded - cfg.rows))
        part = torch.arange(mhc_project.PARTS, device=fn.device).view(-1, 1, 1)
        return torch.where(part < 1, rows, 0 * rows)

    return step("mhc_split", (weights(cfg)[0],), (parts_of(cfg),)), of


def _multiply(cfg: Config) -> tuple[Contract, Formula]:
    contract = step("mhc_multiply", (reference.X, parts_of(cfg)), sums_of(cfg))
    return contract, lambda x, parts: projected(cfg, x, parts[:, : cfg.rows].float().sum(0))


def _exact() -> tuple[bool, str]:
    """Test that a token of which one number is 1 and the others 0 gets a column of fn, bit for bit, in both ways."""
    cfg = Config(hc=2, hidden=64)
    generator, wrong, count = torch.Generator().manual_seed(0), 0, 0
    x = torch.eye(cfg.columns, dtype=torch.bfloat16).view(-1, cfg.hc, cfg.hidden)
    for magnitude in (1e-30, 1e-6, 1.0, 1e30):
        fn = torch.randn(cfg.rows, cfg.columns, generator=generator) * magnitude
        sums, squares = torch.empty(cfg.columns, cfg.splits, cfg.rows), torch.empty(cfg.columns, cfg.splits)
        interpret(mhc_project.mhc_project(cfg), x, fn, sums, squares)
        wrong += int((sums.sum(1) != fn.mT).sum()) + int((squares.sum(1) != 1).sum())
        parts = torch.empty(mhc_project.PARTS, cfg.padded, cfg.columns, dtype=torch.bfloat16)
        interpret(mhc_project.mhc_split(cfg), fn, parts)
        wrong += int((parts.double().sum(0)[: cfg.rows] != fn).sum()) + int((parts[:, cfg.rows :] != 0).sum())
        count += fn.numel()
    return wrong == 0, f"{wrong} of {count} elements differ"


_PROJECTIONS: dict[Callable[[Config], Any], Callable[[Config], tuple[Contract, Formula]]] = {
    mhc_project.mhc_project: _project,
    mhc_project.mhc_split: _split,
    mhc_project.mhc_multiply: _multiply,
}


EXACT: tuple[Lemma, ...] = (
    Tested("parts", "The three parts of bf16 that a block makes of an fp32 add up to it, for 4096 random numbers of "
           "magnitudes from 1e-30 to 1e30, as products with 1 in a token of zeros show; so do those of mhc_split.", _exact),
)  # fmt: skip


# Coefficients


class Coefficients(NamedTuple):
    """What the coefficients of all tokens are; of the head alone, its weights."""

    pre: SymbolicTensor
    logits: SymbolicTensor
    post: Any


def mu_of(cfg: Config, sums: Any, squares: Any) -> tuple[Any, Any]:
    """Return the projections of the tokens, normalised, and the root that they were divided by; sums in the splits' order."""
    total, square = (reduce(add, [each[:, s] for s in range(cfg.splits)]) for each in (sums, squares))
    root = (square / cfg.columns + cfg.norm_eps).sqrt().unsqueeze(-1)
    return total / root, root


def _coefficients(cfg: Config, sums: Any, squares: Any, scale: Any, base: Any) -> Coefficients:
    hc, (mu, _) = cfg.hc, mu_of(cfg, sums, squares)
    pre = (mu[:, :hc] * scale[0] + base[:hc]).sigmoid() + cfg.eps
    if cfg.head:
        return Coefficients(tensor(pre), tensor(pre), None)
    post = 2 * (mu[:, hc : 2 * hc] * scale[1] + base[hc : 2 * hc]).sigmoid()
    logits = mu[:, 2 * hc :] * scale[2] + base[2 * hc :]
    return Coefficients(tensor(pre), tensor(logits.unflatten(-1, (hc, hc))), post)


def abbreviated(name: str, of: SymbolicTensor) -> SymbolicTensor:
    """Return a tensor of which each element is an opaque function of its index."""
    return SymbolicTensor(of.form_shape, lambda *i: Value(nf.apply(name, *i)))


def _inputs(contract: Contract, kernel: Any) -> dict[str, SymbolicTensor]:
    """Return the symbolic inputs of a kernel, by name."""
    shapes = {b.name: [nf.form(int(n)) if isinstance(n, int) or not hasattr(n, "name") else SEQUENCE for n in b.shape]
              for b in kernel.buffer_map.values()}  # fmt: skip
    return {spec.name: symbolic_input(spec.name, shapes[spec.name]) for spec in contract.inputs}


def lock_step(cuts: Any, at: Form) -> Invariant:
    """Return the invariant of Sinkhorn's loop on a token's logits: the states after column steps are p / (u v)."""
    columns = recurrence("x", cuts[1::2], cuts)  # cut 0 is the softmax, then column, row, column, ...
    return Invariant(
        free=(NAMES.p, NAMES.u, NAMES.v),
        positive=(NAMES.p, NAMES.u, NAMES.v),
        determined={
            NAMES.r: Determined(lambda s, i: 1 / s[NAMES.u](i)),
            NAMES.c: Determined(lambda s, j: 1 / s[NAMES.v](j)),
        },
        ghosts=(Ghost(columns, lambda s, i, j: s[NAMES.p](i, j) / s[NAMES.u](i) / s[NAMES.v](j), at=(at,)),),
    )


Given = dict[str, SymbolicTensor]


def weighing(
    cfg: Config,
    contract: Contract,
    beside: Callable[[Config, Given, Coefficients], dict[str, Any]] | None = None,
    summed: Mapping[str, Determined] = MappingProxyType({}),
    token: Callable[[], Form] = block,
) -> Compare:
    """Return the comparison of a kernel that makes coefficients and sums the streams with their weights.

    ``beside`` returns what it writes beside ``comb``, if that is not the sum itself; ``summed`` is what else holds in its loop.
    """

    def compare(kernel: Any, known: Facts) -> Compared:
        given, at = _inputs(contract, kernel), token()
        found = _coefficients(cfg, *(given[name] for name in ("sums", "squares", "scale", "base")))
        wanted = (beside or _wanted)(cfg, given, found)
        loops, through = list(serial_loops(kernel).values()), _through(found, summed, at)
        if cfg.head:
            done = execute(kernel, invariants={loops[0]: through}, facts=known)
            return done, [*done.equations, *done.compare("y", wanted["y"].value)]
        with cutting() as cuts:
            of: Any = sinkhorn
            comb = tensor(of(abbreviated("logit", found.logits), cfg.iterations, cfg.eps))
        reading = partial(Abbreviating, _short(found.logits, at))
        done = execute(
            kernel, invariants={loops[0]: through, loops[1]: lock_step(cuts, at)}, facts=known, reading=reading
        )
        equations = list(done.equations)
        for name, result in wanted.items():
            equations += done.compare(name, result.value)
        if all(equation.holds for equation in equations):
            states = {cuts[-1].name: lambda *i: done.ghosts["x"](nf.form(cfg.iterations - 1), *i)}
            equations += done.compare("comb", lambda *i: resolve(comb.at(*i), cuts, states))
        return done, equations

    return compare


def _wanted(cfg: Config, given: Given, found: Coefficients) -> dict[str, Any]:
    """Return what a kernel writes beside ``comb``, with the weights of the streams abbreviated."""
    return {"y": tensor(sum_of(given, found))} | ({} if cfg.head else {"post": tensor(found.post)})


def sum_of(given: Given, found: Coefficients) -> Any:
    """Return the sum of the streams, their weights abbreviated."""
    pre: Any = abbreviated("pre", found.pre)
    return (pre.unsqueeze(-1) * given["x"]).sum(1)


def _through(found: Coefficients, summed: Mapping[str, Determined], at: Form) -> Invariant:
    """Return what holds in the loop that sums the streams: the weights of the token, and what is summed."""
    fixed = {"weights": Determined(lambda s, i: nf.apply("pre", at, i)), **summed}
    return Invariant(determined=fixed, definitions={"pre": found.pre.at})


def _short(logits: SymbolicTensor, at: Form) -> Abbreviate:
    """Return how the logits of a token are abbreviated where they are stored: they alone are made with the last scale."""
    by, last = Abbreviation("logit", logits.value), nf.read("scale", 2)

    def short(place: tuple[Form, ...], value: Value) -> tuple[Abbreviation, tuple[Form, ...]] | None:
        return (by, (at, *place[1:])) if nf.support(last) <= nf.support(value.form) else None

    return short


def _weigh(cfg: Config) -> Contract:
    inputs = reference.X, *sums_of(cfg, Elements(low=0)), *weights(cfg)[1:]
    if cfg.head:
        return step("mhc_head_weigh", inputs, (reference.Y,))
    return step("mhc_weigh", inputs, reference.MHC_PRE.outputs)


def reading(cfg: Config, layers: tuple[str, ...] = LAYERS, **more: Any) -> Iterator[Proof]:
    """Yield the kernels of a layer's input and coefficients, or of the head."""
    given, wide = statics(cfg), "L2" in layers
    lemmas = EXACT if wide else ()
    for factory, claim in _PROJECTIONS.items():
        contract, of = claim(cfg)
        compare = tiled(of, contract, BY_GROUPS) if wide else None
        kernel = factory(cfg)
        yield Proof("mhc", kernel, contract, given, compare, PASS_CONFIGS, layers=layers, lemmas=lemmas, **more)
        lemmas = ()
    factory = mhc_pre.mhc_head_weigh if cfg.head else mhc_pre.mhc_weigh
    compare = weighing(cfg, _weigh(cfg)) if wide else None
    yield Proof("mhc", factory(cfg), _weigh(cfg), given, compare, PASS_CONFIGS, layers=layers, **more)
