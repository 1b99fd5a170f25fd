"""The range layer: what it proves of correct kernels, and what it refuses."""

from typing import Any

import pytest
import tilelang.language as T

from corpus import EXAMPLES
from lemmata.kernels.sinkhorn import Config, sinkhorn_fwd
from lemmata.proofs.engine.base.conditions import Condition
from lemmata.proofs.engine.execution.invariants import Determined, Invariant
from lemmata.proofs.engine.execution.ranges import Signs, Waiver, conditions
from lemmata.proofs.engine.execution.symbolic import execute
from lemmata.proofs.engine.forms import normal_form as nf
from lemmata.proofs.engine.smt.solve import solve


def unproved(found: list[Condition]) -> list[Condition]:
    return [c for c in found if solve(c).verdict != "proved"]


def sinkhorn_conditions(positive: tuple[str, ...], kernel: Any = None) -> list[Condition]:
    determined = {"r": Determined(lambda s, i: 1 / s["u"](i)), "c": Determined(lambda s, j: 1 / s["v"](j))}
    invariant = Invariant(free=("p", "u", "v"), determined=determined, positive=positive)
    found, waived = conditions(execute(kernel or sinkhorn_fwd(Config(3)), invariants={"_": invariant}))
    assert not waived
    return found


def test_sinkhorn_is_in_range() -> None:
    found = sinkhorn_conditions(("p", "u", "v"))
    assert {c.statement.split(":")[0] for c in found} == {
        "the argument of exp is at most 0",
        "the denominator is not 0",
        "the value is positive",
    }
    assert not unproved(found)


def test_without_the_invariant_the_denominators_are_open() -> None:
    assert all("denominator" in c.statement for c in unproved(sinkhorn_conditions(())))
    assert unproved(sinkhorn_conditions(()))


def test_positivity_that_is_not_kept_is_refused() -> None:
    """With a negative eps the sums need not stay positive."""
    assert unproved(sinkhorn_conditions(("p", "u", "v"), sinkhorn_fwd(Config(3, eps=-1e-6))))


@pytest.mark.parametrize(("bug", "good"), [(None, True), ("maximum not subtracted", False)])
def test_softmax_subtracts_its_maximum(bug: str | None, good: bool) -> None:
    found, _ = conditions(execute(EXAMPLES["softmax"].build(bug)))
    bad = unproved(found)
    assert (not bad) == good
    assert all("exp" in c.statement and "T.exp" in c.site.text for c in bad)


def small(name: str) -> Any:
    functions = {
        "sqrt": lambda x: T.sqrt(x * x),
        "sqrt of a negative": T.sqrt,
        "log": lambda x: T.log(T.exp(x - T.max(x, 0.0)) + 1),
        "log of a negative": lambda x: T.log(x + 1),
        "rsqrt": lambda x: T.rsqrt(x * x + 1),
        "rsqrt of 0": lambda x: T.rsqrt(x * x),
        "division": lambda x: 1 / (x * x + 1),
        "division by 0": lambda x: 1 / (x - 1),
        "exp": lambda x: T.exp(x - T.max(x, 5.0)),
        "exp of the minimum": lambda x: T.exp(x - T.min(x, 5.0)),
    }
    f = functions[name]

    @T.prim_func
    def kernel(x: T.Tensor((8,), "float32"), out: T.Tensor((8,), "float32")):
        with T.Kernel(1, threads=8):
            for i in T.Parallel(8):
                out[i] = f(x[i])

    return kernel


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("sqrt", "sqrt of a negative"),
        ("log", "log of a negative"),
        ("rsqrt", "rsqrt of 0"),
        ("division", "division by 0"),
        ("exp", "exp of the minimum"),
    ],
)
def test_each_operation_has_its_condition(good: str, bad: str) -> None:
    assert not unproved(conditions(execute(small(good)))[0])
    found = unproved(conditions(execute(small(bad)))[0])
    assert len(found) == 1
    assert found[0].kind == "range"


def test_waivers_are_listed_and_need_a_reason() -> None:
    run = execute(small("division by 0"))
    waiver = Waiver("out[i]", "nonzero", "the caller never passes 1")
    found, waived = conditions(run, [waiver])
    assert (found, [w for _, w in waived]) == ([], [waiver])
    assert conditions(run, [Waiver("out[i]", "exp", "of another kind")])[1] == []
    with pytest.raises(ValueError, match="and a reason"):
        Waiver("out[i]", "nonzero", " ")


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
