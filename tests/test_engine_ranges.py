"""The range layer on a kernel that ships, and its parts; small kernels are in verdicts/range."""

from typing import Any

import pytest
import tilelang.language as T
import z3

from lemmata.kernels.sinkhorn import Config, sinkhorn_fwd
from lemmata.proofs.engine.base.conditions import Condition
from lemmata.proofs.engine.execution.invariants import Determined, Invariant
from lemmata.proofs.engine.execution.ranges import UNDERFLOW, Linear, Signs, Waiver, conditions, unmodelled
from lemmata.proofs.engine.execution.symbolic import execute
from lemmata.proofs.engine.forms import normal_form as nf
from lemmata.proofs.engine.smt.solve import solve
from verdicts import opened

DETERMINED = {"r": Determined(lambda s, i: 1 / s["u"](i)), "c": Determined(lambda s, j: 1 / s["v"](j))}


def unproved(found: list[Condition]) -> list[Condition]:
    return [c for c in found if solve(c).verdict != "proved"]


def sinkhorn_conditions(positive: tuple[str, ...], kernel: Any = None) -> list[Condition]:
    invariant = Invariant(free=("p", "u", "v"), determined=DETERMINED, positive=positive)
    found, waived = conditions(execute(kernel or sinkhorn_fwd(Config(3)), invariants={"_": invariant}))
    assert not waived
    return found


def test_sinkhorn_is_in_range() -> None:
    found = sinkhorn_conditions(("p", "u", "v"))
    assert {c.statement.split(":")[0] for c in found} == {
        "the argument of exp is at most 0",
        "the denominator is not 0",
        "the denominator does not underflow",
        "the value is positive",
    }
    assert not unproved(found)


def test_an_eps_keeps_denominators_from_underflow_unless_it_is_subnormal() -> None:
    invariant = Invariant(free=("p", "u", "v"), determined=DETERMINED, positive=("p", "u", "v"))

    def named(eps: float) -> tuple[str, ...]:
        return unmodelled(execute(sinkhorn_fwd(Config(3, eps=eps)), invariants={"_": invariant}))

    assert not named(1e-6)
    assert named(1e-39) == (UNDERFLOW,)


def test_without_the_invariant_the_denominators_are_open() -> None:
    assert all("denominator" in c.statement for c in unproved(sinkhorn_conditions(())))
    assert unproved(sinkhorn_conditions(()))


def test_positivity_that_is_not_kept_is_refused() -> None:
    """With a negative eps the sums need not stay positive."""
    assert unproved(sinkhorn_conditions(("p", "u", "v"), sinkhorn_fwd(Config(3, eps=-1e-6))))


def test_waivers_are_listed_and_need_a_reason() -> None:
    run = execute(opened("range/division_by_0").kernel)
    waiver = Waiver("out[i]", "nonzero", "the caller never passes 1")
    found, waived = conditions(run, [waiver])
    assert (found, [w for _, w in waived]) == ([], [waiver])
    assert conditions(run, [Waiver("out[i]", "exp", "of another kind")])[1] == []
    with pytest.raises(ValueError, match="and a reason"):
        Waiver("out[i]", "nonzero", " ")


def raised_late(growth: float) -> Any:
    """Return a kernel of pairs, whose maximum is the first unless the second exceeds it by more than ``growth``."""

    @T.prim_func
    def kernel(x: T.Tensor((32, 2), "float32"), out: T.Tensor((32, 2), "float32")):
        with T.Kernel(1, threads=32):
            for i in T.Parallel(32):
                row_max = T.if_then_else(x[i, 1] - x[i, 0] > growth, x[i, 1], x[i, 0])
                out[i, 0] = T.exp(x[i, 0] - row_max)
                out[i, 1] = T.exp(x[i, 1] - row_max)

    return kernel


@pytest.mark.parametrize(("growth", "most", "proved"), [(5, 5, True), (5.5, 5.25, False), (5, 0, False), (5, 6, True)])
def test_a_proof_may_say_how_large_arguments_of_exp_are(growth: float, most: float, proved: bool) -> None:
    found, _ = conditions(execute(raised_late(growth), most=most))
    assert len(found) == 2
    assert f"the argument of exp is at most {most:g}" in found[0].statement
    assert (not unproved(found)) == proved


def test_a_product_with_a_condition_is_the_rest_where_it_holds() -> None:
    x, y = nf.variable("x", "real"), nf.variable("y", "real")
    condition, linear = nf.nonnegative(y), Linear(frozenset(), {}, {})
    product, holds, rest = map(linear.real, (condition * x, condition, x))
    solver = z3.Solver()
    solver.add(linear.facts)

    def follows(claim: Any) -> bool:
        return bool(solver.check(z3.Not(claim)) == z3.unsat)

    assert follows(z3.And(z3.Implies(holds == 1, product == rest), z3.Implies(holds == 0, product == 0)))
    assert not follows(product == rest)
    assert not follows(product == 0)


def test_signs() -> None:
    x, n = nf.variable("x", "real"), nf.variable("n")
    signs = Signs(frozenset({"p"}))
    p = nf.apply("p", n)
    assert signs.form(p + nf.exp(x)) == "positive"
    assert signs.form(p * n) == "nonnegative"
    assert signs.form(p - 1) is None
    assert signs.form(1 / (p + 1)) == "positive"
    assert signs.form(x * x) == "nonnegative"
    assert signs.form(x) is None
    assert signs.form(nf.summation(n, lambda k: nf.exp(nf.read("f", k)))) == "nonnegative"  # n may be 0
    assert signs.form(nf.apply("q", n)) is None


def test_conditions_that_make_a_sum_at_least_one() -> None:
    """A sum over many gives those at the indices known, and none where a term may be negative."""
    j = nf.fresh("j")
    linear = Linear(frozenset(), {}, {nf.number(j): nf.form(512)})

    def listed(k: nf.Form) -> nf.Form:
        return nf.nonnegative(nf.read("listed", k))

    def tail(k: nf.Form) -> nf.Form:
        return nf.nonnegative(nf.variable("K") - k)

    def over(f: Any) -> nf.Form:
        return nf.summation(512, f)

    inside = over(listed) - over(lambda k: listed(k) * tail(k))
    assert linear._conditions(inside) == [listed(j) * (nf.ONE - tail(j))]
    assert linear._conditions(inside + nf.exp(nf.variable("x", "real"))) == [listed(j) * (nf.ONE - tail(j))]
    assert linear._conditions(over(listed) - over(tail)) == [], "one may be negative"
    assert linear._conditions(inside - nf.exp(nf.variable("x", "real"))) == []
    assert Linear(frozenset(), {}, {})._conditions(inside) == [], "no index is known"
    assert Linear(frozenset(), {}, {nf.number(j): nf.form(511)})._conditions(inside) == [], "of another extent"
