"""What is claimed of the kernels from a layer's result to the next layer's input (kernels/mhc_post_pre.py and its backward).

Each is compared with its own step of the formula, in torch:

    mhc_mix          the streams after the layer, by the reference, and of them what mhc_project makes of streams
    mhc_weigh_norm   what mhc_weigh makes, whose sum goes through the norm; and the weights of that sum
    mhc_norm_bwd     the sum again, and the gradients of the norm, by the reference

Put one after the other, the first two are the reference's formula. The backward goes on through the kernels of mhc_pre and
mhc_post. Column c belongs to thread ``c // width % threads`` of a block, in the sums over columns as in proofs/mhc.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from ..kernels import mhc_post_pre, mhc_post_pre_backward
from ..kernels.build import PASS_CONFIGS
from ..kernels.mhc_post import Config as Streams
from ..kernels.mhc_project import TOKENS
from ..reference import mhc as reference
from ..reference.contract import Contract, Elements, TensorSpec
from .engine.base.report import LAYERS
from .engine.execution.abbreviations import Abbreviating, Abbreviation
from .engine.execution.invariants import Determined, Invariant, State
from .engine.execution.symbolic import block
from .engine.forms import normal_form as nf
from .engine.forms.entailment import Facts
from .engine.forms.extended import Value
from .engine.forms.normal_form import Form
from .engine.layers.comparison import against, symbolic_inputs
from .engine.reference.symbolic_torch import tensor
from .engine.semantics.semantics import serial_loops
from .engine.verify import Compare, Compared
from .mhc_pre import (
    BY_GROUPS,
    F32,
    SEQUENCE,
    Coefficients,
    Config,
    Given,
    abbreviated,
    projected,
    statics,
    step,
    sum_of,
    sums_of,
    weighing,
    weights,
)
from .suite import Proof

Formula = Callable[..., Any]
PRE = TensorSpec("pre", "tokens hc", F32)


def _mix(cfg: Config, named: Callable[[Any], Any] = lambda out: out) -> tuple[Contract, Formula]:
    """Return the contract of ``mhc_mix``, and its formula; ``named`` may abbreviate the streams that are projected."""

    def of(x: torch.Tensor, y: torch.Tensor, post: torch.Tensor, comb: torch.Tensor, fn: torch.Tensor) -> Any:
        out = reference.mhc_post(x, y, post, comb)
        return out, *projected(cfg, named(out), fn)

    inputs = *reference.MHC_POST.inputs, weights(cfg)[0]
    return step("mhc_mix", inputs, (reference.OUT, *sums_of(cfg))), of


def _mixing(cfg: Config) -> Compare:
    """Return the comparison of ``mhc_mix``: what it has of the streams in shared memory, to project it, is abbreviated."""
    contract, of = _mix(cfg, partial(abbreviated, "mixed"))

    def compare(kernel: Any, known: Facts) -> Compared:
        given: Any = symbolic_inputs(kernel, contract)
        x, y, post, comb, _ = given.values()
        out, last = tensor(reference.mhc_post(x, y, post, comb)), SEQUENCE - 1
        by = Abbreviation("mixed", lambda n, o, c: out.value(-nf.maximum((-n, -last)), o, c))

        def short(place: tuple[Form, ...], value: Value) -> tuple[Abbreviation, tuple[Form, ...]] | None:
            reads = [a for a in map(nf.atom_of, nf.support(value.form)) if isinstance(a, nf.Read) and a.buffer == "y"]
            if len(place) < 3 or not reads:
                return None
            return by, (block() * TOKENS + place[1], place[0], reads[0].index[-1])

        with nf.tiled(*BY_GROUPS[:2]):
            return against(of, contract, reading=partial(Abbreviating, short))(kernel, known)

    return compare


def _by_streams(at: Streams, weight: Callable[[Form, Form], Form], token_of: Callable[[], Form] = block) -> Determined:
    """Return what ``acc`` is in the loop over the streams: the sum of those before, 0 beyond the last column."""

    def acc(s: State, n: Form, t: Form, j: Form) -> Form:
        token, c = token_of(), (n * at.threads + t) * at.width + j
        there = nf.nonnegative(at.hidden - 1 - c)
        return nf.summation(s.t, lambda i: weight(token, i) * there * nf.read("x", token, i, c))

    return Determined(acc)


def _token() -> Form:
    """Return the token of a block of ``mhc_weigh_norm``, one of two."""
    return nf.floordiv(block(), 2)


def _weigh(cfg: Config) -> tuple[Contract, Compare]:
    inputs = reference.X, *sums_of(cfg, Elements(low=0)), *weights(cfg)[1:], reference.NORM_WEIGHT
    contract = step("mhc_weigh_norm", inputs, (*reference.MHC_PRE.outputs, PRE))

    def beside(_: Config, given: Given, found: Coefficients) -> dict[str, Any]:
        norm_weight: Any = given["norm_weight"]
        y = reference.normed(sum_of(given, found), norm_weight, cfg.norm_eps)
        return {"y": tensor(y), "post": tensor(found.post), "pre": found.pre}

    at = mhc_post_pre.by_few(cfg)
    acc = _by_streams(at, lambda token, i: nf.apply("pre", token, i), _token)
    return contract, _tiled(at, weighing(cfg, contract, beside, {"acc": acc}, _token))


def _norm_bwd(cfg: Config) -> tuple[Contract, Compare]:
    grad, *_ = reference.MHC_PRE_BWD.inputs
    results = TensorSpec("of_sum", grad.shape, grad.dtypes), TensorSpec("of_weight", grad.shape, F32)
    contract = step("mhc_norm_bwd", (grad, reference.X, PRE, reference.NORM_WEIGHT), results)

    def of(grad_y: Any, x: Any, pre: Any, norm_weight: Any) -> Any:
        return reference.normed_bwd(grad_y, (pre.unsqueeze(-1) * x).sum(1), norm_weight, cfg.norm_eps)

    at = mhc_post_pre.of_all_columns(cfg)

    def compare(kernel: Any, known: Facts) -> Compared:
        (loop,) = serial_loops(kernel).values()
        acc = _by_streams(at, lambda token, i: nf.read("pre", token, i))
        return against(of, contract, {loop: Invariant(determined={"acc": acc})})(kernel, known)

    return contract, _tiled(at, compare)


def _tiled(at: Streams, compare: Compare) -> Compare:
    """Return the comparison with sums over all columns as a block takes them."""

    def by_threads(kernel: Any, known: Facts) -> Compared:
        with nf.tiled(at.hidden, at.width), nf.tiled(at.hidden // at.width, at.threads, strided=True):
            return compare(kernel, known)

    return by_threads


def between(cfg: Config, layers: tuple[str, ...] = LAYERS, **more: Any) -> Iterator[Proof]:
    """Yield the kernels from a layer's result to the next layer's normalised input, and back through its norm."""
    given, wide = statics(cfg), "L2" in layers
    contract, _ = _mix(cfg)
    equal = _mixing(cfg) if wide else None
    yield Proof("mhc", mhc_post_pre.mhc_mix(cfg), contract, given, equal, PASS_CONFIGS, layers=layers, **more)
    for factory, (contract, compare) in (
        (mhc_post_pre.mhc_weigh_norm, _weigh(cfg)),
        (mhc_post_pre_backward.mhc_norm_bwd, _norm_bwd(cfg)),
    ):
        equal = compare if wide else None
        yield Proof("mhc", factory(cfg), contract, given, equal, PASS_CONFIGS, layers=layers, **more)
