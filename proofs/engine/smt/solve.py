"""The solvers: one condition in, one verdict out.

Every attempt has a fixed seed and a bound on the solver's steps, not on time. The first one is made in few steps where the
condition's terms are: to make a context takes longer than most conditions do. It gives no counterexample. The others run in
fresh contexts, so that what was asked before is no matter. A condition that z3 cannot decide is tried with another seed,
then by cvc5.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

import cvc5
import z3

from ..base.conditions import Condition, Outcome, Verdict
from .alike import shape
from .bitvectors import subterms
from .witness import equal, of_cvc5, of_z3

Z3_STEPS = 10_000_000  # rlimit; the conditions of the kernels in the tests need some 100,000 at most
CVC5_STEPS = 200_000  # rlimit-per
SECOND_SEED = 42
_WAYS: tuple[Mapping[str, str], ...] = (
    {},
    {"learned-rewrite": "true"},
    {"nl-ext-split-zero": "true"},
    {"use-soi": "true"},
    {"decision": "stoponly"},
    {"nl-ext-tplanes-interleave": "true"},
    {"arith-brab": "false"},
    {"arith-rewrite-equalities": "true"},
    {"fp-exp": "true"},  # floats of 16 bits, which cvc5 calls experimental
)
"""cvc5's options, one set after the other: guards, products, large sums, more products, places in tiles, short floats."""
_DIVISIONS = {
    getattr(z3, f"Z3_OP_B{name}{suffix}") for name in ("SDIV", "UDIV", "SREM", "UREM", "SMOD") for suffix in ("", "_I")
}
_FEW = 200_000  # rlimit, of z3's plain solver; its tactics have the rest, but take longer than small questions do

_MEMORY = 2**12  # outcomes that are kept
_decided: dict[tuple[object, ...], Outcome] = {}
_SHAPES = 2**16  # that are kept
_proved: dict[tuple[object, ...], str] = {}  # shapes of proved conditions, and who proved them

_VERDICTS: Mapping[str, Verdict] = {"unsat": "proved", "sat": "refuted", "unknown": "unknown"}
Answer = tuple[Verdict, Mapping[str, int] | None]


def solve(
    condition: Condition,
    *,
    solver: Literal["z3", "cvc5"] = "z3",
    seed: int = 0,
    rlimit: int = Z3_STEPS,
    witness: bool = True,
    few: bool = False,
) -> Outcome:
    """Return what became of one condition, with a counterexample to it if a ``witness`` is wanted.

    "z3" tries z3 with ``seed``, then with seed 42, then cvc5, and stops at the first answer; "cvc5" takes the answers of cvc5
    alone, which is asked through SMT-LIB text, of numbers that z3 has found too. ``rlimit`` bounds the steps of each z3
    attempt. cvc5 counts other steps and has its own bound. What is to be proved in ``few`` steps or not at all is asked once,
    of Z3, without a counterexample; "cvc5" then knows nothing.
    """
    start = time.perf_counter()
    denied = *condition.hypotheses, z3.Not(condition.goal)
    if solver == "z3":
        verdict = _asked(_plain(), denied, min(rlimit, _FEW), seed)
        if verdict == "proved" or (verdict == "refuted" and not witness):
            return Outcome(condition, verdict, time.perf_counter() - start, None, f"z3 seed {seed}")
    if few:
        return Outcome(condition, "unknown", time.perf_counter() - start)
    attempts = [("cvc5", seed)] if solver == "cvc5" else [("z3", seed), ("z3", SECOND_SEED), ("cvc5", 0)]
    for name, number in attempts:
        verdict, model = _z3(condition, number, rlimit, witness) if name == "z3" else _cvc5(condition, number)
        if verdict == "unknown" and solver == "cvc5":
            verdict, model = _found_by_z3(condition, number)
        if verdict != "unknown":
            return Outcome(condition, verdict, time.perf_counter() - start, model, f"{name} seed {number}")
    return Outcome(condition, "unknown", time.perf_counter() - start)


def decide(condition: Condition, *, witness: bool = True, renamed: bool = False, **means: Any) -> Outcome:
    """Return what `solve` does, which is asked once of the same terms by the same means, unless it does not know.

    Terms are told by their context and their numbers there, which are their own as long as the outcome keeps them. Where
    many conditions are ``renamed`` ones, what was proved is not asked again in other names, which takes time to tell.
    """
    given, goal = frozenset(h.get_id() for h in condition.hypotheses), condition.goal.get_id()
    key = id(condition.goal.ctx), given, goal, *sorted(means.items())
    known = _decided.get(key)
    if known and (known.verdict == "proved" or not witness):
        return replace(known, condition=condition, seconds=0.0, counterexample=None)
    asked = _in_any_names if renamed else solve
    outcome = asked(condition, witness=witness, **means)
    if outcome.verdict != "unknown":
        if len(_decided) >= _MEMORY:
            _decided.clear()
        _decided[key] = outcome
    return outcome


def _in_any_names(condition: Condition, *, witness: bool, **means: Any) -> Outcome:
    """Return what `solve` does, which is not asked of what was proved in other names."""
    digest = shape((*condition.hypotheses, condition.goal))
    key = digest, *sorted(means.items())
    if digest is not None and key in _proved:
        return Outcome(condition, "proved", 0.0, None, _proved[key])
    outcome = solve(condition, witness=witness, **means)
    if digest is not None and outcome.verdict == "proved":
        if len(_proved) >= _SHAPES:
            _proved.clear()
        _proved[key] = outcome.solver
    return outcome


def smt2(condition: Condition) -> str:
    """Return a condition as a script in SMT-LIB 2, which is unsatisfiable exactly when the condition holds."""
    solver = z3.Solver()
    terms = (*condition.hypotheses, z3.Not(condition.goal))
    solver.add(*map(z3.simplify, terms))  # z3 admits sums and conjunctions of one term, the standard does not
    header = [condition.kind + ": " + condition.statement, "at " + str(condition.site)]
    comments = "".join(f"; {line}\n" for text in header for line in text.splitlines())
    body = re.sub(r"^; .*\n|^\(set-info.*\n", "", solver.to_smt2(), flags=re.MULTILINE)
    body = re.sub(r"\((bv[su](?:div|rem)|bvsmod)_i ", r"(\1 ", body)  # z3's, equal to the standard's, by what is not 0
    return f"{comments}(set-logic ALL)\n{_quoted(body)}"


def _quoted(script: str) -> str:
    """Return a script with primed and numbered names between bars, as the standard wants; z3 prints some without."""
    pieces = re.split(r"(\|[^|]*\|)", script)
    return "".join(
        p if p.startswith("|") else re.sub(r"(?<![^\s()])[A-Za-z_][^\s()|]*['#][^\s()|]*", r"|\g<0>|", p)
        for p in pieces
    )


def _z3(condition: Condition, seed: int, rlimit: int, witness: bool) -> Answer:
    context, few = z3.Context(), min(rlimit, _FEW)
    terms = [term.translate(context) for term in (*condition.hypotheses, z3.Not(condition.goal))]
    for solver, steps in ((_plain(context), few), (z3.Solver(ctx=context), max(rlimit - few, 1))):  # 0 is no bound
        if (verdict := _asked(solver, terms, steps, seed)) != "unknown":
            break
    return verdict, of_z3(solver.model(), terms) if witness and verdict == "refuted" else None


def _plain(context: z3.Context | None = None) -> z3.Solver:
    """Return Z3's solver without tactics, where the terms are, so that small questions cost little.

    It cannot tell an interrupt from too many steps, and leaves it to Python.
    """
    solver = z3.SimpleSolver(ctx=context)
    solver.set("ctrl_c", False)
    return solver


def _asked(solver: z3.Solver, terms: Iterable[z3.BoolRef], steps: int, seed: int) -> Verdict:
    """Return Z3's answer in so many steps. It takes an interrupt as a reason not to know; here it stays a KeyboardInterrupt."""
    solver.set("random_seed", seed)
    solver.set("rlimit", steps)
    for term in terms:  # as Solver.add does, which asks each time anew whether it is given formulas
        z3.Z3_solver_assert(solver.ctx.ref(), solver.solver, term.as_ast())
    answer = str(solver.check())
    if answer == "unknown" and solver.reason_unknown() == "interrupted from keyboard":
        raise KeyboardInterrupt
    return _VERDICTS[answer]


def unsatisfiable(terms: Iterable[z3.BoolRef], steps: int, seed: int = 0) -> bool:
    """Return whether Z3 finds, in at most so many steps, that the terms cannot hold together."""
    return _asked(_plain(), terms, steps, seed) == "proved"


def products(terms: Iterable[z3.ExprRef]) -> list[z3.BoolRef]:
    """Return what holds of products of integers: g v + g <= g w where v < w and g >= 0.

    For each product g v of the terms and each w of which g w is one too, or divides one.
    """
    found: dict[tuple[int, ...], list[z3.ArithRef]] = {}
    for term in subterms(terms):
        if z3.is_mul(term) and z3.is_int(term):
            factors = sorted((f for f in term.children() if not z3.is_int_value(f)), key=lambda f: int(f.get_id()))
            found[tuple(f.get_id() for f in factors)] = factors
    facts = []
    for product in filter(lambda product: len(product) > 1, found.values()):
        for n, v in enumerate(product):
            rest = product[:n] + product[n + 1 :]
            others = {f.get_id(): f for of in found.values() if (left := _divided(of, rest)) for f in left}
            shared = z3.Product(rest)
            facts += [
                z3.Implies(z3.And(v < w, shared >= 0), shared * v + shared <= shared * w)
                for w in others.values()
                if not w.eq(v)
            ]
    return facts


def _divided(product: Iterable[z3.ArithRef], divisor: Iterable[z3.ArithRef]) -> list[z3.ArithRef]:
    """Return the factors that are left of a product, none if it is not divisible."""
    left = list(product)
    for factor in divisor:
        at = next((n for n, f in enumerate(left) if f.eq(factor)), None)
        if at is None:
            return []
        del left[at]
    return left


def without_divisions(condition: Condition) -> Condition:
    """Return a condition without the hypotheses that divide bits, which it may not need; it may be refuted for lack of them."""
    kept = (h for h in condition.hypotheses if not any(t.decl().kind() in _DIVISIONS for t in subterms([h])))
    return replace(condition, hypotheses=tuple(kept))


def with_unknown_divisions(condition: Condition) -> Condition:
    """Return a condition whose hypotheses have, for each division of bits, a function of which nothing is known.

    What holds of any function holds of a division: it may be refuted, but if it is proved, so is the condition itself. Where
    guards exclude one another because they say opposite things of one quotient, that suffices.
    """
    divided = [t for t in subterms(condition.hypotheses) if t.decl().kind() in _DIVISIONS]
    pairs = [(t, z3.Function(f"any {t.decl().name()} of {t.sort()}", *[t.sort()] * 3)(*t.children())) for t in divided]
    return replace(condition, hypotheses=tuple(z3.substitute(h, *pairs) for h in condition.hypotheses))


def _cvc5(condition: Condition, seed: int) -> Answer:
    """Ask cvc5 in one way after the other: divisions of bits left out or unknown, as it is, with what is known of products."""
    denied = *condition.hypotheses, z3.Not(condition.goal)
    known = replace(condition, hypotheses=(*condition.hypotheses, *products(map(z3.simplify, denied))))
    fewer = without_divisions(condition)
    options = {"seed": str(seed), "rlimit-per": str(CVC5_STEPS)}
    if len(fewer.hypotheses) < len(condition.hypotheses):
        for weaker in (fewer, with_unknown_divisions(condition)):
            answer = _cvc5_way(smt2(weaker), {**options, "rlimit-per": str(10 * CVC5_STEPS)})
            if answer[0] == "proved":
                return answer
    plain, *others = ((condition, way) for way in _WAYS)
    answers = (_cvc5_way(smt2(asked), {**options, **way}) for asked, way in (plain, (known, {}), *others))
    return next((answer for answer in answers if answer[0] != "unknown"), ("unknown", None))


def _found_by_z3(condition: Condition, seed: int) -> Answer:
    """Ask cvc5 whether a condition is refuted where Z3 finds that it is: at the values of all unknown numbers."""
    verdict, model = _z3(condition, seed, Z3_STEPS, witness=True)
    if verdict != "refuted" or model is None:
        return "unknown", None
    terms = *condition.hypotheses, condition.goal
    pinned = replace(condition, hypotheses=(*condition.hypotheses, *equal(terms, model)))
    answer = _cvc5_way(smt2(pinned), {"seed": str(seed), "rlimit-per": str(CVC5_STEPS)})
    return answer if answer[0] == "refuted" else ("unknown", None)


def _cvc5_way(script: str, options: Mapping[str, str]) -> Answer:
    solver = cvc5.Solver()
    for option, value in {"produce-models": "true", **options}.items():
        solver.setOption(option, value)
    parser = cvc5.InputParser(solver)
    parser.setStringInput(cvc5.InputLanguage.SMT_LIB_2_6, script, "condition")
    symbols, answer = parser.getSymbolManager(), ""
    try:
        while not (command := parser.nextCommand()).isNull():
            answer = str(command.invoke(solver, symbols)).strip() or answer
    except RuntimeError:  # an operator of z3's own, which the standard does not have
        return "unknown", None
    verdict = _VERDICTS.get(answer, "unknown")
    return verdict, of_cvc5(solver, symbols.getDeclaredTerms()) if verdict == "refuted" else None
