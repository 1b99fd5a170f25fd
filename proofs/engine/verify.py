"""``verify``: everything the engine can show of one kernel, layer by layer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from lemmata.reference.contract import Contract

from . import cache, extract, normal_form, ranges
from .bounds import bounds
from .conditions import Analysis, Condition, Outcome
from .contents import Uninitialised
from .coverage import coverage
from .entailment import Facts
from .equality import Undecided
from .equations import Equation
from .errors import Unsupported
from .extended import Indefinite
from .hollow import guard
from .hypotheses import Hypotheses
from .invariants import Invariant
from .lanes import Fault
from .lemmas import Examples, Lemma, Theorem
from .mutation import Trial, mutation_fates
from .order.questions import deadlock_free, order
from .report import LAYERS, Failure, Layer, Report
from .ring import Undefined, at_most
from .solve import Z3_STEPS, smt2, solve
from .source_lines import origin, touched
from .symbolic import Execution, execute
from .symbolic_torch import symbolic_input, tensor

Compared = tuple[Execution, Sequence[Equation]]
NOTHING = Analysis((), frozenset(), ())
_CHEAPEST_FIRST = ("run", "L2", "range", "L0", "L1")  # the first three need no lowering
Compare = Callable[[Any, Facts], Compared]
"""Executes a kernel symbolically and compares its outputs with the reference; for kernels that need more than `verify`'s
``reference`` and ``invariants``, such as a reference run in lock step."""


_ATOMS = 600_000
"""New atoms of a symbolic execution. The largest, of csa over the window and one range, makes 182 000."""


@dataclass(frozen=True)
class Problem:
    """A kernel and all that is claimed of it. The arguments of `verify`, see there."""

    kernel: Any
    contract: Contract
    statics: Mapping[str, float]
    compare: Compare | None
    lemmas: Sequence[Lemma]
    pass_configs: Mapping[str, object]
    waivers: Sequence[ranges.Waiver]
    arch: str
    solve: Callable[..., Outcome]  # of a condition; see ``solve``
    smt: Path | None = None
    brief: bool = False  # one failure is enough
    examples: Examples | None = None
    dead: Mapping[str, str] = field(default_factory=dict)

    @property
    def hypotheses(self) -> Hypotheses:
        """The contract as formulas over this kernel's sizes."""
        return Hypotheses.of(self.contract, self.statics, self.kernel)

    def analysis(self, layer: str) -> Analysis:
        """The conditions of layer L0 or L1."""
        given = self.kernel, self.hypotheses, self.pass_configs, self.arch
        if layer == "L0":
            return bounds(*given).burying(self.dead)
        return (coverage(*given) + order(*given)).burying(self.dead)

    @property
    def compared(self) -> Compared:
        """The outcome of the symbolic execution; layers L2 and range share it."""
        if isinstance(self._compared, Unsupported):
            raise self._compared
        return self._compared

    @cached_property
    def _compared(self) -> Compared | Unsupported:
        assert self.compare is not None
        try:
            with at_most(_ATOMS):
                return self.compare(self.kernel, facts(self.contract))
        except Unsupported as error:
            return error


def facts(contract: Contract) -> Facts:
    """The contract, for the symbolic reading: ranges of sizes and of integer elements."""

    def bound(value: int | str | None) -> normal_form.Form | None:
        return (
            None
            if value is None
            else normal_form.variable(value)
            if isinstance(value, str)
            else normal_form.form(value)
        )

    def dimension(value: int | str) -> normal_form.Form:
        return normal_form.variable(value) if isinstance(value, str) else normal_form.form(value)

    integers = {s.name: s.elements for s in contract.inputs if s.elements.low is not None}
    shapes = {spec.name: [sum(map(dimension, dim), normal_form.ZERO) for dim in spec.dims] for spec in contract.inputs}
    known = Facts({name: (e.low or 0, bound(e.high)) for name, e in integers.items()}, shapes)
    for name, size in contract.sizes.items():
        known.bound(normal_form.variable(name), normal_form.form(size.high + 1))
        known.add(normal_form.indicator("ge", normal_form.variable(name) - size.low, integer=True))
    return known


def against(
    reference: Callable[..., Any], contract: Contract, invariants: Mapping[str, Invariant] | None = None
) -> Compare:
    """Run an unmodified torch reference on symbolic inputs, in the contract's order, and compare every output."""

    def compare(kernel: Any, known: Facts) -> Compared:
        shapes = {
            b.name: [normal_form.variable(d.name) if hasattr(d, "name") else int(d) for d in b.shape]
            for b in kernel.buffer_map.values()
        }
        inputs = [
            symbolic_input(spec.name, shapes[spec.name], integer=not spec.dtypes[0].is_floating_point)
            for spec in contract.inputs
        ]
        try:
            results = reference(*inputs)
        except (AttributeError, TypeError) as error:
            raise Unsupported(f"the reference does what symbolic tensors cannot: {error}") from error
        results = results if isinstance(results, tuple) else (results,)
        execution = execute(kernel, invariants=invariants, facts=known)
        equations = list(execution.equations)
        for spec, result in zip(contract.outputs, map(tensor, results), strict=True):
            wanted = tuple(map(normal_form.form, shapes[spec.name]))
            if result.form_shape != wanted:
                raise Unsupported(f"{spec.name}: shape {list(map(str, wanted))}, the reference's {result.shape}")
            equations += execution.compare(spec.name, result.value)
        return execution, equations

    return compare


def verify(
    kernel: Any,
    contract: Contract,
    *,
    statics: Mapping[str, float] | None = None,
    reference: Callable[..., Tensor | tuple[Tensor, ...]] | None = None,
    invariants: Mapping[str, Invariant] | None = None,
    compare: Compare | None = None,
    lemmas: Sequence[Lemma] = (),
    examples: Examples | None = None,
    layers: Iterable[str] | None = None,
    pass_configs: Mapping[str, object] | None = None,
    waivers: Sequence[ranges.Waiver] = (),
    dead: Mapping[str, str] | None = None,
    mutate: bool = False,
    every: int = 1,
    equivalents: Mapping[str, str] | None = None,
    arch: str = extract.ARCH,
    solver: Literal["z3", "cvc5"] = "z3",
    seed: int = 0,
    rlimit: int = Z3_STEPS,
    smt: Path | None = None,
    cache_key: str | None = None,
) -> Report:
    """Prove what can be proved of a TileLang kernel, ours or not, for every size that its contract admits.

    Args:
        kernel: the PrimFunc, as its factory returns it. Symbolic dimensions bear the names of the contract's sizes,
            buffers those of its tensors.
        contract: what may be assumed of a call. It must name probe sizes.
        statics: values of the contract's static parameters.
        reference: plain torch on the inputs, in the contract's order; it is run on symbolic tensors, unmodified. Without
            it, and without ``compare``, layers L2 and range are left out of the report.
        invariants: for loops that carry state, by loop name.
        compare: instead of reference and invariants, for proofs that need more.
        lemmas: theorems about the operator.
        examples: inputs to run the kernel and its mutants on, where not every layer is claimed. That proves nothing.
        layers: some of "L0", "L1", "L2", "range", "lemmas", "run"; all that apply by default.
        pass_configs: TileLang's pass configs of the build that ships.
        waivers: obligations of the range layer that are not proved, each with its reason.
        dead: conditions of if statements that never hold, by their text in the lowered kernel, each with the reason.
        mutate: also prove of mutants of the kernel that some layer refutes each.
        every: of how many mutants one is taken.
        equivalents: mutants that compute the same, by their names without the line, each with the reason. Those of which
            the compiler makes the same code need not be named.
        arch: the GPU, which bounds shared memory and decides what the compiler emits.
        solver: "z3", followed by others where it does not know, or "cvc5" alone.
        seed: of the solver.
        rlimit: the steps that z3 may take for one condition.
        smt: a folder to write every condition to, as SMT-LIB.
        cache_key: a name for ``reference``, ``invariants``, ``compare``, ``lemmas`` and ``examples``, which must change when
            they do. With it the verdict is kept on disk, by a digest of this name, the kernel's IR, all other arguments, the
            sources of the engine, of lemmata's references and proofs, and the versions. Without it nothing is kept or looked
            up.

    Returns:
        The report. It holds only if every condition of every layer asked for is proved, the guards against hollow proofs
        found nothing, and every surviving mutant is accounted for.

    Raises:
        ValueError: the contract names no probe sizes, or a layer is unknown.
        UnsupportedVersion: TileLang is not the version that the engine reads.
    """
    extract.require_tilelang()
    if len(contract.probes) < 2:
        raise ValueError(f"contract: expected two probe sizes, a ragged and the largest, got {len(contract.probes)}")
    compare = compare or (against(reference, contract, invariants) if reference else None)
    chosen = set(LAYERS if layers is None else layers)
    if unknown := chosen - set(LAYERS):
        raise ValueError(f"layers: expected some of {', '.join(LAYERS)}, got {sorted(unknown)}")
    wanted = [name for name in LAYERS if name in chosen and applies(name, compare, lemmas, examples)]
    if layers is not None and (lacking := chosen - set(wanted)):
        raise ValueError(
            "layers: expected a reference for L2 and range, lemmas for lemmas, examples for run, "
            f"got none for {sorted(lacking)}"
        )
    if any(set(probe) != set(contract.sizes) for probe in contract.probes):
        raise ValueError(f"contract: expected probes of all its sizes {sorted(contract.sizes)}")
    decide = partial(solve, solver=solver, seed=seed, rlimit=rlimit)
    configs = dict(pass_configs or {})
    problem = Problem(
        kernel,
        contract,
        statics or {},
        compare,
        lemmas,
        configs,
        waivers,
        arch,
        decide,
        smt,
        examples=examples,
        dead=dead or {},
    )
    question = (contract, problem.statics, wanted, sorted(configs.items(), key=str), waivers, arch, problem.dead)
    effort = (solver, seed, rlimit, mutate, every, equivalents)
    digest = cache.key(kernel, cache_key, question, effort)
    if cache_key and smt is None and (known := cache.load(digest)):
        return known
    report = Report(
        kernel=str(kernel.attrs["global_symbol"]),
        contract=contract.op,
        statics=dict(problem.statics),
        versions=cache.versions(),
        layers=tuple(_layer(problem, name) for name in wanted),
    )
    if mutate:
        order = [name for name in _CHEAPEST_FIRST if name in wanted]
        same = partial(extract.same_code, kernel, pass_configs=configs, arch=arch)
        fates = mutation_fates(kernel, lambda mutant: _tried(problem, mutant, order), every, equivalents or {}, same)
        unexplained = tuple(m.name for m in fates if m.fate == "equivalent" and not m.reason)
        report = replace(report, mutations=fates, unexplained=unexplained)
    if cache_key:
        cache.save(digest, report)
    return report


def applies(layer: str, compare: Compare | None, lemmas: Sequence[Lemma], examples: Examples | None) -> bool:
    """Whether there is something for a layer to show."""
    given = {"L2": compare, "range": compare, "lemmas": lemmas, "run": examples}
    return bool(given.get(layer, True))


def _layer(problem: Problem, name: str) -> Layer:
    """One layer; what the engine does not model fails it."""
    start = time.perf_counter()
    try:
        layer = _SHOWN[name](problem, name)
    except (Uninitialised, Undefined, Indefinite) as error:
        kind = {Uninitialised: "uninitialised", Undefined: "undefined"}.get(type(error), "not a number")
        layer = Layer(name, 1, 0, 0, 0.0, (Failure(kind, str(error)),))
    except (Unsupported, Undecided) as error:
        layer = Layer(name, 1, 0, 0, 0.0, (Failure("unsupported", str(error), verdict="unsupported"),))
    return replace(layer, seconds=round(time.perf_counter() - start, 3))


def _solved(problem: Problem, name: str) -> Layer:
    analysis = problem.analysis(name)
    outcomes = _outcomes(problem, name, analysis.conditions)
    proved = sum(o.verdict == "proved" for o in outcomes)
    checked = analysis if proved == len(outcomes) or not problem.brief else NOTHING
    hollow = guard(problem.contract, problem.hypotheses, checked, problem.solve)
    failures = (*_traced(problem, _failures(outcomes)), *hollow.failures)
    buried = {branch for c in analysis.conditions if c.kind == "dead" for branch in c.site.branches}
    dead = tuple(f"dead: if {branch}: {reason}" for branch, reason in problem.dead.items() if branch in buried)
    unmodelled = tuple(sorted(analysis.unmodelled))
    decided = name == "L1" and len(outcomes) == len(analysis.conditions)
    free = deadlock_free(outcomes, unmodelled) if decided else ()
    return Layer(name, len(outcomes), proved, hollow.checks, 0.0, failures, unmodelled, statements=(*free, *dead))


def _outcomes(problem: Problem, name: str, conditions: Sequence[Condition]) -> list[Outcome]:
    if problem.smt:
        statics = "".join(f"-{key}={value:g}" for key, value in problem.statics.items())
        folder = problem.smt / f"{problem.kernel.attrs['global_symbol']}{statics}"
        folder.mkdir(parents=True, exist_ok=True)
        for number, condition in enumerate(conditions):
            (folder / f"{name}-{number:04}-{condition.kind.replace(' ', '-')}.smt2").write_text(smt2(condition))
    outcomes = []
    for condition in conditions:
        outcomes.append(problem.solve(condition))
        if problem.brief and outcomes[-1].verdict != "proved":
            break
    return outcomes


def _failures(outcomes: Iterable[Outcome]) -> list[Failure]:
    return [
        Failure(o.condition.kind, o.condition.statement, str(o.condition.site), o.verdict, o.counterexample)
        for o in outcomes
        if o.verdict != "proved"
    ]


def _traced(problem: Problem, failures: Iterable[Failure]) -> Iterator[Failure]:
    """The failures with the source lines that they can be about."""
    for failure in failures:
        lines = origin(failure.statement, touched(problem.kernel))
        yield replace(failure, site=f"{failure.site} ({lines})") if lines else failure


def _equal(problem: Problem, name: str) -> Layer:
    execution, equations = problem.compared
    failures = tuple(
        Failure("equivalence", str(e).removeprefix("NOT proved: "), verdict="not proved")
        for e in equations
        if not e.holds
    )
    hollow = guard(problem.contract, problem.hypotheses, NOTHING, problem.solve)
    proved = sum(e.holds for e in equations)
    floats = [s.name for s in problem.contract.inputs if s.dtypes[0].is_floating_point and not s.elements.finite]
    finite = [name for name in floats if name not in execution.raw | execution.infinite]
    assumed = [f"assumed: the elements of {', '.join(finite)} are finite"] if finite else []
    assumed += [f"assumed: the elements of {name} are finite or inf" for name in sorted(execution.infinite)]
    assumed += [f"trusted: {name}, C text of the kernel's own, is {what}" for name, what in execution.externs.items()]
    failures += hollow.failures
    unmodelled = tuple(sorted(execution.unmodelled))
    return Layer(name, len(equations), proved, hollow.checks, 0.0, failures, unmodelled, statements=tuple(assumed))


def _ranges(problem: Problem, name: str) -> Layer:
    execution, _ = problem.compared
    conditions, waived = ranges.conditions(execution, problem.waivers)
    outcomes = _outcomes(problem, name, conditions)
    proved = sum(o.verdict == "proved" for o in outcomes)
    reasons = tuple(f"{condition.statement} at {condition.site}: {waiver.reason}" for condition, waiver in waived)
    hollow = guard(problem.contract, problem.hypotheses, Analysis(tuple(conditions), frozenset(), ()), problem.solve)
    failures = (*_failures(outcomes), *hollow.failures)
    return Layer(name, len(outcomes), proved, hollow.checks, 0.0, failures, waived=reasons)


def _lemmas(problem: Problem, name: str) -> Layer:
    failures: list[Failure] = []
    statements: list[str] = []
    count = 0
    for lemma in problem.lemmas:
        if isinstance(lemma, Theorem):
            outcomes = _outcomes(problem, f"{name}-{lemma.name.replace(' ', '-')}", lemma.conditions())
            count += len(outcomes)
            failures += _failures(outcomes)
            holds, status = all(o.verdict == "proved" for o in outcomes), "proved"
        else:
            count += 1
            holds, seen = lemma.check()
            status = f"tested, not proved ({seen})"
            failures += [] if holds else [Failure("tested", f"{lemma.statement}: {seen}")]
        statements.append(f"{lemma.name}: {lemma.statement} [{status if holds else 'FAILED'}]")
    return Layer(name, count, count - len(failures), 0, 0.0, tuple(failures), statements=tuple(statements))


def _run(problem: Problem, name: str) -> Layer:
    """Runs on examples, up to the first that goes wrong."""
    assert problem.examples is not None
    count, failures = 0, []
    try:
        for inputs, right in problem.examples.check(problem.kernel):
            count += 1
            if not right:
                failures.append(Failure("result", inputs, verdict="wrong"))
                break
    except Fault as error:
        count += 1
        failures.append(Failure("fault", str(error), verdict="found"))
    statement = f"{problem.examples.statement} [{'FAILED' if failures else f'tested, not proved ({count} runs)'}]"
    return Layer(name, count, count - len(failures), 0, 0.0, tuple(failures), statements=(statement,))


_SHOWN: Mapping[str, Callable[[Problem, str], Layer]] = {
    "L0": _solved,
    "L1": _solved,
    "L2": _equal,
    "range": _ranges,
    "lemmas": _lemmas,
    "run": _run,
}


def _tried(problem: Problem, mutant: Any, order: Sequence[str]) -> Iterator[Trial]:
    """The layers on a mutant, one after the other."""
    changed = replace(problem, kernel=mutant, smt=None, brief=True)
    for name in order:
        yield Trial(name, partial(_layer, changed, name))
