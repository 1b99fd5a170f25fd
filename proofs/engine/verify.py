"""``verify``: everything the engine can show of one kernel, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Unpack, cast

from torch import Tensor

from lemmata.reference.contract import Contract

from . import cache
from .base.report import Report
from .compiler import extract
from .compiler.extract import plain, prim_func
from .forms.forgetting import forgetting
from .layers.comparison import Compare, Compared, against
from .layers.mutants import with_mutants
from .layers.problem import Problem
from .layers.verdicts import layer
from .options import Options, applies, asked_for, check
from .smt.solve import Z3_STEPS, decide

_DEFAULTS: Options = {
    **{"lemmas": (), "waivers": (), "arch": extract.ARCH, "mutate": False, "every": 1},
    **{"solver": "z3", "seed": 0, "rlimit": Z3_STEPS},
}  # the options that are not None if they are left out
__all__ = ["Compare", "Compared", "Options", "against", "applies", "verify"]


def verify(
    kernel: Any,
    contract: Contract,
    *,
    statics: Mapping[str, float] | None = None,
    reference: Callable[..., Tensor | tuple[Tensor, ...]] | None = None,
    layers: Iterable[str] | None = None,
    **options: Unpack[Options],
) -> Report:
    """Prove what can be proved of a TileLang kernel, ours or not, for every size that its contract admits.

    Args:
        kernel: the PrimFunc, as its factory returns it, or a function decorated with ``@tilelang.jit``, whose parameters
            are taken from ``statics`` and whose own pass configs are used. Symbolic dimensions bear the names of the
            contract's sizes, buffers those of its tensors.
        contract: what may be assumed of a call. It must name probe sizes.
        statics: values of the contract's static parameters, and of further ones that the kernel was built with.
        reference: plain torch on the inputs, in the contract's order; it is run on symbolic tensors, unmodified. Without
            it, and without ``compare``, layers L2 and range are left out of the report.
        layers: some of "L0", "L1", "L2", "range", "lemmas", "run"; all that apply by default.
        options: see `Options`.

    Returns:
        The report. It holds only if every condition of every layer asked for is proved, the guards against hollow proofs
        found nothing, and every surviving mutant is accounted for.

    Raises:
        ValueError: the contract names no probe sizes, or a layer, a static parameter or the value of an option is none.
        TypeError: an option is unknown, or an argument is of another type.
        UnsupportedVersion: TileLang is not the version that the engine reads.
    """
    extract.require_tilelang()
    if unknown := options.keys() - Options.__annotations__.keys():
        raise TypeError(f"verify: expected options among {', '.join(Options.__annotations__)}, got {sorted(unknown)}")
    asked = cast(Options, {**dict.fromkeys(Options.__annotations__), **_DEFAULTS, **options})
    problem = _problem(kernel, contract, statics or {}, reference, asked)
    wanted = asked_for(layers, problem.compare, problem.lemmas, problem.examples)
    configs = sorted(problem.pass_configs.items(), key=str)
    question = problem.contract, problem.statics, wanted, configs, problem.waivers, problem.arch, problem.dead
    effort = [asked["solver"], asked["seed"], asked["rlimit"], asked["mutate"], asked["every"], asked["equivalents"]]
    digest = cache.key(problem.kernel, asked["cache_key"], question, effort, asked["share"])
    if asked["cache_key"] and asked["smt"] is None and (known := cache.load(digest)):
        return known
    name = str(problem.kernel.attrs["global_symbol"])
    with forgetting():
        shown = tuple(layer(problem, name) for name in wanted if not asked["share"])
        report = Report(name, contract.op, dict(problem.statics), cache.versions(), shown)
        if asked["mutate"]:
            report = with_mutants(report, problem, wanted, asked["every"], asked["equivalents"] or {}, asked["share"])
    if asked["cache_key"]:
        cache.save(digest, report)
    return report


def _problem(
    kernel: Any, contract: Contract, statics: Mapping[str, float], reference: Callable[..., Any] | None, asked: Options
) -> Problem:
    """Return what is to be proved, once the options are found to be right."""
    check(contract, statics, asked)
    kernel, own_configs = prim_func(kernel, statics)
    return Problem(
        kernel=kernel,
        contract=contract,
        statics=statics,
        compare=asked["compare"] or (against(reference, contract, asked["invariants"]) if reference else None),
        lemmas=asked["lemmas"],
        examples=asked["examples"],
        pass_configs={**own_configs, **plain(asked["pass_configs"])},
        waivers=asked["waivers"],
        dead=asked["dead"] or {},
        arch=asked["arch"],
        solve=partial(decide, solver=asked["solver"], seed=asked["seed"], rlimit=asked["rlimit"]),
        smt=asked["smt"],
    )
