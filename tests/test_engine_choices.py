"""What only finds a proof cannot make a false theorem: wrong choices leave false equations unproved."""

from __future__ import annotations

import pytest

from lemmata.proofs.engine.forms import cases, equality, equations
from lemmata.proofs.engine.forms import normal_form as nf
from lemmata.proofs.engine.forms.choices import indices_of_maxima, nested_condition, open_condition, solutions
from lemmata.proofs.engine.forms.entailment import Facts
from lemmata.proofs.engine.forms.equations import holds
from lemmata.proofs.engine.forms.normal_form import ONE, ZERO, Form

N, A, B = (nf.variable(name) for name in "nab")
EQUAL = nf.indicator("eq", A - B, integer=True)


def number(p: Form) -> int:
    ((((found, _),), _),) = p.terms.items()
    return found


def x(i: Form) -> Form:
    return nf.read("x", i)


def test_the_choices_prove_what_is_true() -> None:
    assert open_condition(x(A) * EQUAL) == number(EQUAL)
    assert (number(A), B) in list(solutions(A - B))
    assert holds(EQUAL * x(A), EQUAL * x(B), Facts())
    assert nested_condition(x(EQUAL)) == number(EQUAL)
    assert holds(x(EQUAL), EQUAL * x(ONE) + (ONE - EQUAL) * x(ZERO), Facts())
    assert indices_of_maxima(x(A) - nf.maximum([x(B), x(ZERO)])) == sorted({number(A), number(x(A))})


def test_a_wrong_solution_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equations, "solutions", lambda _: iter([(number(A), N)]))
    assert not holds(EQUAL * x(A), EQUAL * x(N), Facts())


@pytest.mark.parametrize("of_integers", [True, False])
def test_no_choice_of_a_condition_makes_a_false_equation_hold(
    of_integers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = nf.indicator("ge", N - 5, integer=of_integers)
    monkeypatch.setattr(equations, "open_condition", lambda _: number(other))
    monkeypatch.setattr(cases, "nested_condition", lambda _: number(other))
    assert not holds(EQUAL * x(A), EQUAL * x(N), Facts())


def test_what_varies_within_a_sum_is_no_case(monkeypatch: pytest.MonkeyPatch) -> None:
    total = nf.summation(N, lambda k: nf.indicator("ge", x(k) - 1, integer=True) * x(k))
    (inside,) = [n for n in nf.support(total) if isinstance(nf.atom_of(n), nf.Indicator)]
    for wrong in (inside, number(N)):
        monkeypatch.setattr(equations, "open_condition", lambda _, wrong=wrong: wrong)
        with pytest.raises(ValueError, match="expected a condition to split by"):
            holds(total, x(N), Facts())


def test_an_equation_that_is_not_refuted_is_not_proved_by_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equality, "differs", lambda _: False)
    assert not equality.equal((x(A) + 1) / (x(B) + 1), x(A) / x(B))
    assert equality.equal((x(A) + 1) / (x(B) + 1) - 1, (x(A) - x(B)) / (x(B) + 1))
