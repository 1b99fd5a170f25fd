"""Sequents in other names: what is told to be the same holds or fails together, and nothing else is told to be the same."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from typing import Any

import pytest
import z3
from hypothesis import given
from hypothesis import strategies as st

from engine_verdicts import hypotheses
from lemmata.proofs.engine.base.conditions import Condition, Outcome, Site
from lemmata.proofs.engine.layers.bounds import bounds
from lemmata.proofs.engine.smt import solve as solvers
from lemmata.proofs.engine.smt.alike import shape
from lemmata.proofs.engine.smt.solve import decide, solve
from test_verdicts import FILES
from verdicts import opened

WORD, BYTE, INT = z3.BitVecSort(32), z3.BitVecSort(8), z3.IntSort()


def consts(names: str, sort: z3.SortRef = WORD) -> list[Any]:
    return [z3.Const(name, sort) for name in names.split()]


def function(name: str, *sorts: z3.SortRef) -> z3.FuncDeclRef:
    return z3.Function(name, *(sorts or (WORD, WORD)))


a, b, c, d = consts("a b c d")
i, j, m, n = consts("i j m n", INT)
P = consts("p q", z3.BoolSort())
FLOAT = z3.Float32()
(x,) = consts("x", FLOAT)
f, g = function("f"), function("g")
SAME = [
    ((a + b == 3,), (c + d == 3,)),
    ((z3.ULT(a, b), z3.ULT(b, a)), (z3.ULT(b, a), z3.ULT(a, b))),
    ((f(a) == g(b),), (g(a) == f(b),)),
    ((f(a) == a,), (function("or")(c) == c,)),
    ((i * j >= n, i >= 0), (m * i >= j, m >= 0)),
]
OTHER = [
    ((a + b == 3,), (a + a == 3,)),
    ((a + b == 3,), (a + b == 4,)),
    ((a + b == 3,), (a - b == 3,)),
    ((z3.ULT(a, b), z3.ULT(b, a)), (z3.ULT(a, b), z3.ULT(a, b))),
    ((z3.ULT(a, b),), (a < b,)),
    ((f(a) == g(b),), (f(a) == f(b),)),
    ((f(a) == g(b),), (f(a) == g(a),)),
    ((z3.Extract(7, 0, a) == 1,), (z3.Extract(8, 1, a) == 1,)),
    ((a == b,), (operator.eq(*consts("a b", BYTE)),)),
    ((i >= j,), (operator.ge(*consts("i j", z3.RealSort())),)),
    ((i > 2**40,), (i > 2**41,)),
    ((z3.Or(*P),), (function("or", *[z3.BoolSort()] * 3)(*P),)),
    ((x == z3.FPVal(1.5, FLOAT),), (x == z3.FPVal(2.5, FLOAT),)),
    ((z3.fpAdd(z3.RNE(), x, x) == x,), (z3.fpAdd(z3.RTZ(), x, x) == x,)),
    ((a == 1, b == 2), (a == 1,)),
    ((a == 1, b == 1), (a == 1, a == 1)),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_names_make_no_difference(one: Sequence[z3.BoolRef], other: Sequence[z3.BoolRef]) -> None:
    assert shape(one) == shape(other) is not None


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_all_else_does(one: Sequence[z3.BoolRef], other: Sequence[z3.BoolRef]) -> None:
    assert None not in (shape(one), shape(other))
    assert shape(one) != shape(other)


@pytest.mark.parametrize(
    "term",
    [
        z3.ForAll([i], i + j == j),
        z3.Select(z3.Array("memory", INT, INT), i) == j,
        z3.Const("s", z3.DeclareSort("S")) == z3.Const("t", z3.DeclareSort("S")),
        z3.Length(z3.String("s")) == 3,
    ],
)
def test_what_may_not_be_told_apart_has_no_shape(term: z3.BoolRef) -> None:
    assert shape((term,)) is None


OPERATIONS = {
    "plus": lambda x, y: x + y,
    "minus": lambda x, y: x - y,
    "least": lambda x, y: z3.If(z3.ULT(x, y), x, y),
    "of": lambda x, _: f(x),
}
STEPS = st.lists(
    st.tuples(st.sampled_from(list(OPERATIONS)), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=3
)


def made(steps: Sequence[tuple[str, int, int]], names: Sequence[str]) -> z3.BoolRef:
    terms = consts(" ".join(names))
    for name, x, y in steps:
        terms.append(OPERATIONS[name](terms[x % len(terms)], terms[y % len(terms)]))
    return terms[-1] == 7


@given(STEPS, STEPS)
def test_terms_have_one_shape_exactly_if_they_are_one_in_some_names(
    one: list[tuple[str, int, int]], other: list[tuple[str, int, int]]
) -> None:
    named = [made(other, names) for names in itertools.permutations("uvw")]
    assert (shape((made(one, "uvw"),)) == shape((named[0],))) is any(made(one, "uvw").eq(term) for term in named)
    assert len({shape((term,)) for term in named}) == 1


@pytest.mark.parametrize("family", ["bounds/gather_", "bounds/bins_", "bounds/index_set_"])
def test_conditions_of_right_and_wrong_kernels_have_one_verdict_if_they_have_one_shape(family: str) -> None:
    """A right kernel and others like it, each wrong in one place: what is proved of the right one is not proved of them."""
    verdicts: dict[bytes | None, set[str]] = {}
    for name in (name for name in FILES if name.startswith(family)):
        file = opened(name)
        for condition in bounds(file.kernel, hypotheses(file), {}).conditions:
            verdict = solve(condition, witness=False).verdict
            verdicts.setdefault(shape((*condition.hypotheses, condition.goal)), set()).add(verdict)
    assert None not in verdicts
    assert {"proved"} in verdicts.values()
    assert {"refuted"} in verdicts.values()
    assert all(len(found) == 1 for found in verdicts.values())


def condition(goal: z3.BoolRef, *given_: z3.BoolRef) -> Condition:
    return Condition("bounds", "x stays below y", given_, goal, Site("out[x]"))


def decide_renamed(of: Condition, **means: Any) -> Outcome:
    return decide(of, renamed=True, **means)


def test_what_was_proved_is_proved_in_other_names_and_nothing_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def counted(of: Condition, **means: Any) -> Outcome:
        asked.append(of)
        return solve(of, **means)

    monkeypatch.setattr(solvers, "solve", counted)
    monkeypatch.setattr(solvers, "_decided", {})
    monkeypatch.setattr(solvers, "_proved", {})
    right, renamed = condition(f(a) == f(b), a == b), condition(g(d) == g(c), d == c)
    assert [decide_renamed(one).verdict for one in (right, renamed)] == ["proved", "proved"]
    assert asked == [right]
    assert decide_renamed(renamed).condition is renamed
    assert decide_renamed(renamed, solver="cvc5").solver == "cvc5 seed 0", "by other means it is asked"
    for _ in range(2):
        wrong = decide_renamed(condition(f(a) == g(b), a == b))
        assert wrong.verdict == "refuted"
        assert wrong.counterexample
    assert decide_renamed(condition(g(c) == f(d), c == d)).verdict == "refuted"
    assert len(asked) == 5, "a counterexample is asked for in its own names"
