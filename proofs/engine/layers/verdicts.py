"""The layers of a verdict: each lists its conditions, has them decided, and says what is assumed, waived or not modelled."""

from __future__ import annotations

import time
from dataclasses import replace

from ..base.conditions import Analysis
from ..base.errors import Unsupported
from ..base.failures import failures
from ..base.report import Failure, Layer
from ..compiler.source_lines import traced
from ..execution import ranges
from ..guards.hollow import guard
from ..order.questions import deadlock_free, order
from ..smt.constructs import cautious
from .bounds import OWN, bounds
from .coverage import coverage
from .examples import run
from .lemmas import Theorem
from .problem import Problem, proved

COMPILERS_GUARDS = "the compiler's guards"
NOTHING = Analysis((), frozenset(), ())


def layer(problem: Problem, name: str) -> Layer:
    """Return one layer of the verdict on a kernel; what the engine does not model fails it."""
    start = time.perf_counter()
    try:
        shown = _SHOWN[name](problem, name)
    except Unsupported as error:
        failure = Failure(error.kind, str(error))
        failure = replace(failure, verdict="unsupported") if error.kind == Unsupported.kind else failure
        shown = Layer(name, 1, 0, 0, 0.0, (failure,))
    return replace(shown, seconds=round(time.perf_counter() - start, 3))


def _solved(problem: Problem, name: str) -> Layer:
    """Return layer L0 or L1."""
    given = problem.kernel, problem.hypotheses, problem.pass_configs, problem.arch
    analysis = (bounds(*given) if name == "L0" else coverage(*given) + order(*given)).burying(problem.dead)
    last = sorted(analysis.conditions, key=lambda c: c.kind == OWN)  # they matter only where all others hold
    outcomes, relied = [*map(cautious, problem.outcomes(name, last))], []
    failing = [o for o in outcomes if o.verdict != "proved"]
    if all(o.condition.kind == OWN for o in failing):  # which the compiler's guards ensure, if they ensure all of it
        outcomes, relied = [o for o in outcomes if o.verdict == "proved"], failing
    checked = analysis if proved(outcomes) == len(outcomes) or not problem.brief else NOTHING
    hollow = guard(problem.contract, problem.hypotheses, checked, problem.solve)
    found = (*traced(failures(outcomes), problem.kernel), *hollow.failures)
    buried = {branch for c in analysis.conditions if c.kind == "dead" for branch in c.site.branches}
    dead = tuple(f"dead: if {branch}: {reason}" for branch, reason in problem.dead.items() if branch in buried)
    unmodelled = tuple(sorted(analysis.unmodelled))
    decided = name == "L1" and len(outcomes) == len(analysis.conditions)
    said = (*(deadlock_free(outcomes, unmodelled) if decided else ()), *dead)
    if relied:
        unmodelled += (COMPILERS_GUARDS,)
        said += tuple(f"relies on {COMPILERS_GUARDS}: {failure}" for failure in failures(relied))
    return Layer(name, len(outcomes), proved(outcomes), hollow.checks, 0.0, found, unmodelled, statements=said)


def _equal(problem: Problem, name: str) -> Layer:
    """Return layer L2."""
    execution, equations = problem.compared
    hollow = guard(problem.contract, problem.hypotheses, NOTHING, problem.solve)
    texts = (str(e).removeprefix("NOT proved: ") for e in equations if not e.holds)
    unequal = (Failure("equivalence", text, verdict="not proved") for text in texts)
    floats = [s.name for s in problem.contract.inputs if s.dtypes[0].is_floating_point and not s.elements.finite]
    finite = [name for name in floats if name not in execution.raw and name not in execution.finite]
    kinds = (finite, "finite"), (execution.finite, "finite, or -inf where the claim has them so")
    assumed = [f"assumed: the elements of {', '.join(of)} are {what}" for of, what in kinds if of]
    assumed += [f"trusted: {name}, C text of the kernel's own, is {what}" for name, what in execution.externs.items()]
    assumed += execution.constants.statements()
    equal, unmodelled = sum(e.holds for e in equations), tuple(sorted(execution.unmodelled))
    found = (*unequal, *hollow.failures)
    return Layer(name, len(equations), equal, hollow.checks, 0.0, found, unmodelled, statements=tuple(assumed))


def _range(problem: Problem, name: str) -> Layer:
    """Return the layer ``range``."""
    execution, _ = problem.compared
    conditions, waived = ranges.conditions(execution, problem.waivers)
    outcomes = problem.outcomes(name, conditions)
    reasons = tuple(f"{condition.statement} at {condition.site}: {waiver.reason}" for condition, waiver in waived)
    hollow = guard(problem.contract, problem.hypotheses, replace(NOTHING, conditions=tuple(conditions)), problem.solve)
    found = (*failures(outcomes), *hollow.failures)
    named = ranges.unmodelled(execution)
    return Layer(name, len(outcomes), proved(outcomes), hollow.checks, 0.0, found, named, waived=reasons)


def _lemmas(problem: Problem, name: str) -> Layer:
    """Return the layer ``lemmas``: for each theorem its conditions, and one condition for each trial."""
    found: list[Failure] = []
    statements: list[str] = []
    count = shown = 0
    for lemma in problem.lemmas:
        if isinstance(lemma, Theorem):
            of = f"{name}-{lemma.name.replace(' ', '-')}"
            outcomes = problem.outcomes(of, lemma.conditions(), renamed=True)  # one step is made many times
            right, wanted, status = proved(outcomes), len(outcomes), "proved"
            found += failures(outcomes)
        else:
            right, seen = lemma.check()
            wanted, status = 1, f"tested, not proved ({seen})"
            found += [] if right else [Failure("tested", f"{lemma.statement}: {seen}")]
        count, shown = count + wanted, shown + right
        statements.append(f"{lemma.name}: {lemma.statement} [{status if right == wanted else 'FAILED'}]")
    return Layer(name, count, shown, 0, 0.0, tuple(found), statements=tuple(statements))


_SHOWN = {"L0": _solved, "L1": _solved, "L2": _equal, "range": _range, "lemmas": _lemmas, "run": run}
