"""What only finds a proof cannot make a false theorem: wrong choices leave false equations unproved."""

from __future__ import annotations

import pytest

from evaluation import evaluate
from lemmata.proofs.engine.forms import equations, summing, sums
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
    monkeypatch.setattr(equations, "nested_condition", lambda _: number(other))
    assert not holds(EQUAL * x(A), EQUAL * x(N), Facts())


def test_what_varies_within_a_sum_is_no_case(monkeypatch: pytest.MonkeyPatch) -> None:
    total = nf.summation(N, lambda k: nf.indicator("ge", x(k) - 1, integer=True) * x(k))
    (inside,) = [n for n in nf.support(total) if isinstance(nf.atom_of(n), nf.Indicator)]
    for wrong in (inside, number(N)):
        monkeypatch.setattr(equations, "open_condition", lambda _, wrong=wrong: wrong)
        with pytest.raises(ValueError, match="expected a condition to split by"):
            holds(total, x(N), Facts())


def test_an_equation_that_is_not_refuted_is_not_proved_by_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equations, "differs", lambda _: False)
    assert not equations.equal((x(A) + 1) / (x(B) + 1), x(A) / x(B))
    assert equations.equal((x(A) + 1) / (x(B) + 1) - 1, (x(A) - x(B)) / (x(B) + 1))


def test_only_sums_of_so_many_elements_are_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    few, largest = nf.summation(20, x), nf.big_maximum(100, x)
    assert sums.all_written_out(few) is sum((x(nf.form(k)) for k in range(20)), ZERO)
    for wrong in (lambda atom: isinstance(atom, nf.Big), lambda _: True):
        monkeypatch.setattr(sums, "is_constant_sum", wrong)
        monkeypatch.setattr(sums, "few_elements", lambda _: True)
        for other in (largest, nf.summation(N, x), x(A)):
            assert sums.all_written_out(other) is other


@pytest.mark.parametrize("tiling", [(2, False), (3, True), (7, False), (40, True)])
def test_no_choice_of_tiles_changes_a_sum(tiling: tuple[int, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summing, "tiling", lambda extent: tiling if extent is N else None)
    monkeypatch.setattr(summing, "splits", lambda: True)
    monkeypatch.setattr(summing, "longest", lambda _: 5)
    tiled = nf.summation(N, lambda k: x(k) * (1 + nf.indicator("ge", A - k, integer=True)))
    total = evaluate(tiled, {"n": 20.0, "a": 4.0}, lambda _, i: float(i[0] ** 2))
    assert total == sum(k**2 * (1 + (k <= 4)) for k in range(20))


def test_tiles_of_no_elements_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summing, "tiling", lambda _: (-2, False))
    with pytest.raises(ValueError, match="expected tiles of at least 1 element, got -2"):
        nf.summation(N, x)


def test_a_rule_says_nothing_of_the_sum_of_another() -> None:
    summand = lambda t, j: x(4 * t + j)  # noqa: E731
    rule = sums.by_tiles(nf.form(40), 4, Facts(), [(summand, summand)])
    plain = nf.summation(N, x)
    with nf.ruled(rule):
        assert nf.summation(N, x) is plain
    assert rule(N, x) is None
    assert rule(nf.form(40), x) is nf.summation(10, lambda t: nf.summation(4, lambda j: summand(t, j)))
