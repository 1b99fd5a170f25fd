"""Which float constants denote the same number: by their type, in one proof, and stated in the verdict."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import tilelang.language as T
import torch

from lemmata.proofs import verify
from lemmata.proofs.engine.base.report import Report
from lemmata.proofs.engine.forms.constants import DOUBLE, FLOAT, Constants, current, one_proof, unify
from lemmata.proofs.engine.forms.normal_form import LONGEST_SUM, exp, variable
from lemmata.reference.contract import Contract, Size, TensorSpec

ROW = LONGEST_SUM // 2
NEAR = 1.0000001
LOG2_E = 1.44269504


def kernel_of(value: Callable[[Any], Any], dtype: str) -> Any:
    """Return the kernel of y = value(x), element by element."""
    rows = T.dynamic("N")

    @T.prim_func
    def kernel(x: T.Tensor((rows, ROW), dtype), y: T.Tensor((rows, ROW), dtype)):
        with T.Kernel(rows, threads=ROW) as row:
            i = T.get_thread_binding()
            y[row, i] = value(x[row, i])

    return kernel


def proof(value: Callable[[Any], Any], reference: Callable[[Any], Any], dtype: str = "float32") -> Report:
    """Prove layer L2 of that kernel against a reference."""
    x, y = (TensorSpec(name, f"N {ROW}", (getattr(torch, dtype),)) for name in "xy")
    contract = Contract("elementwise", {"N": Size(1, 2**20)}, {}, (x,), (y,), ({"N": 37}, {"N": 2**20}))
    return verify(kernel_of(value, dtype), contract, reference=reference, layers=["L2"])


def stated(report: Report) -> list[str]:
    return [words for words in report.layers[0].statements if "constants" in words]


@pytest.mark.parametrize(
    ("dtype", "factor", "holds"),
    [("float64", NEAR, False), ("float64", 1.0, True), ("float32", NEAR, True), ("float32", 1 + 2e-7, False)],
)
def test_a_constant_near_one_is_one_only_within_its_type(dtype: str, factor: float, holds: bool) -> None:
    assert proof(lambda x: x * T.cast(factor, dtype), lambda x: x, dtype).holds is holds


def test_a_reference_in_double_keeps_its_own_constants_apart() -> None:
    assert not proof(lambda x: x, lambda x: x * NEAR, "float64").holds
    assert not proof(lambda x: x, lambda x: x * NEAR).holds


def test_the_verdict_states_the_largest_deviation_if_there_is_any() -> None:
    report = proof(lambda x: T.exp2(x * LOG2_E) * 0.1, lambda x: x.exp() * 0.1)
    assert report.holds
    (words,) = stated(report)
    bound = Fraction(words.split("at most ")[1].split()[0])
    exact = abs(1 - Fraction(LOG2_E) * Fraction(0.6931471805599453))
    assert exact <= bound <= Fraction(11, 10) * exact
    assert not stated(proof(lambda x: x * 0.5 + 3.0, lambda x: 3 + x / 2))


def test_an_exponent_in_double_is_not_unified_as_a_float_is() -> None:
    assert proof(lambda x: T.exp2(x * 1.4426950408889634), lambda x: x.exp(), "float64").holds
    assert not proof(lambda x: T.exp2(x * LOG2_E), lambda x: x.exp(), "float64").holds
    x = variable("x", "real")
    assert exp(x * Fraction(NEAR)) is not exp(x)


def test_a_proof_knows_no_constant_of_another_one() -> None:
    one, other = 0.12342171, 0.123421708
    with one_proof():
        assert unify(one, "float32") == unify(other, "float32") == Fraction(one)
        assert current().deviation > 0
    with one_proof():
        assert unify(other, "float32") == Fraction(other)
        assert current().deviation == 0
    assert stated(proof(lambda x: x * LOG2_E, lambda x: x * 1.4426950408889634))
    assert not stated(proof(lambda x: x * LOG2_E, lambda x: x * LOG2_E)), "1.4426950408889634 is not known here"


def test_the_coarser_type_of_two_decides() -> None:
    constants = Constants()
    tenth = constants.unify(0.1)
    assert tenth == Fraction(1, 10)
    assert constants.unify(0.10000000149011612, "float32") == tenth
    assert DOUBLE < constants.deviation < FLOAT
    assert constants.unify(0.10000000149011612) != tenth
    assert constants.unify(0.100001, "float32") != tenth
    assert constants.unify(1e-6) == Fraction(1e-6)
    assert constants.unify(float.fromhex("0x1.0c6f7ap-20"), "float32") == Fraction(1e-6)
    assert constants.unify(LOG2_E * 0.6931471805599453, "float32") == 1
    assert constants.unify(LOG2_E * 0.6931471805599453) != 1


def test_a_fraction_may_be_another_constant_rounded() -> None:
    constants = Constants()
    near = constants.unify(1.5 * NEAR)
    assert near == Fraction(1.5 * NEAR) != constants.unify(1.5) == Fraction(3, 2)
    assert constants.unify(1.5, "float32") == near
    assert constants.deviation == near / Fraction(3, 2) - 1
