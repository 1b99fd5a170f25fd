"""Conditions taken out of where they stand, bits of raw inputs, and the torch functions that go with them."""

from typing import Any

import pytest
import tilelang.language as T
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation import evaluate
from lemmata.proofs.engine.base.errors import Unsupported
from lemmata.proofs.engine.execution.symbolic import block, execute
from lemmata.proofs.engine.forms import extended
from lemmata.proofs.engine.forms import normal_form as nf
from lemmata.proofs.engine.forms.entailment import Facts
from lemmata.proofs.engine.forms.equations import by_cases, holds
from lemmata.proofs.engine.forms.extended import Indefinite, Raw, Value
from lemmata.proofs.engine.forms.normal_form import ONE, Form
from lemmata.proofs.engine.layers.comparison import symbolic_input
from lemmata.proofs.engine.reference.pull_array import Integers
from lemmata.proofs.engine.reference.symbolic_torch import SymbolicTensor

A, B, C = (nf.variable(name, "integer") for name in "abc")


def ge(p: Form) -> Form:
    return nf.indicator("ge", p, integer=True)


def choice(condition: Form, then: Any, otherwise: Any) -> Form:
    return condition * then + (ONE - condition) * otherwise


def same(a: Form, b: Form) -> bool:
    return holds(a, b, Facts())


def test_a_condition_is_taken_out_of_an_index_and_of_another_condition() -> None:
    inside = ge(A) * ge(B - 1 - A)
    clamped = nf.read("x", choice(inside, A, 0))
    assert by_cases(clamped, Facts()) is by_cases(choice(inside, nf.read("x", A), nf.read("x", 0)), Facts())
    assert by_cases(ge(choice(ge(A), B, C)), Facts()) is by_cases(choice(ge(A), ge(B), ge(C)), Facts())


@pytest.mark.parametrize("build", [nf.summation, nf.big_maximum])
@pytest.mark.parametrize("extent", [nf.variable("n"), nf.form(100)])
def test_under_a_sum_and_a_maximum(build: Any, extent: Form) -> None:
    def element(k: Form, then: Any, otherwise: Any) -> Form:
        return ge(choice(ge(A - k), nf.read("x", then), nf.read("x", otherwise)) - B)

    def apart(k: Form, then: Any, otherwise: Any) -> Form:
        return choice(ge(A - k), ge(nf.read("x", then) - B), ge(nf.read("x", otherwise) - B))

    left = build(extent, lambda k: element(k, k, k + 1))
    assert same(left, build(extent, lambda k: apart(k, k, k + 1)))
    assert not same(left, build(extent, lambda k: apart(k, k + 1, k)))
    assert not same(left, build(extent + 1, lambda k: apart(k, k, k + 1)))


def test_the_index_of_a_sum_is_within_its_extent() -> None:
    total = nf.summation(100, lambda k: ge(99 - k) * nf.read("x", k))
    assert same(total, nf.summation(100, lambda k: nf.read("x", k)))
    assert not same(
        nf.summation(100, lambda k: ge(98 - k) * nf.read("x", k)), nf.summation(100, lambda k: nf.read("x", k))
    )


def test_a_clamped_maximum_looks_at_the_last_element_again() -> None:
    def clamped(n: int, c: int) -> Form:
        return nf.big_maximum(n, lambda k: nf.read("x", -nf.maximum([-k, nf.form(-c)])))

    first = nf.big_maximum(70, lambda k: nf.read("x", k))
    assert same(clamped(128, 69), first)
    assert not same(clamped(128, 70), first)
    assert not same(clamped(128, 68), first)
    beyond = nf.big_maximum(128, lambda k: nf.read("x", -nf.maximum([-k, nf.form(-69)])) + k)
    assert not same(beyond, nf.big_maximum(70, lambda k: nf.read("x", k) + k)), "the index occurs elsewhere too"


TREES = st.recursive(
    st.sampled_from([A, B, C, nf.form(1), nf.form(-2)]),
    lambda inner: st.one_of(
        st.tuples(inner, inner, inner).map(lambda t: choice(ge(t[0]), t[1], t[2])),
        st.tuples(inner, inner).map(lambda t: t[0] + t[1]),
        st.tuples(inner, inner).map(lambda t: t[0] * t[1]),
        inner.map(lambda p: nf.read("x", p)),
        inner.map(ge),
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(tree=TREES, values=st.tuples(*[st.integers(-2, 2)] * 3))
def test_the_value_does_not_change(tree: Form, values: tuple[int, int, int]) -> None:
    def value(p: Form) -> float:
        return evaluate(p, dict(zip("abc", map(float, values), strict=True)), lambda _, i: float(3 * i[0] ** 2 - i[0]))

    assert value(by_cases(tree, Facts())) == value(tree)


# Bits


def by_bits(low: int) -> Any:
    """The largest count of neighbours, compared by the bits of any floats."""
    count = T.dynamic("n")

    @T.prim_func
    def kernel(x: T.Tensor((count,), "float32"), out: T.Tensor((count,), "int32")):
        with T.Kernel(count, threads=1) as i:
            bits = T.reinterpret(x[i], "int32")
            out[i] = T.if_then_else(bits >= low, bits, -bits)

    return kernel


def test_any_floats_are_compared_by_their_bits() -> None:
    bits = symbolic_input("x", (nf.variable("n"),), raw=True).view(torch.int32)
    wanted: Any = torch.where(bits >= 0, bits, -bits)  # type: ignore[call-overload]
    assert all(e.holds for e in execute(by_bits(0), raw=("x",)).compare("out", wanted.at))
    assert not all(e.holds for e in execute(by_bits(1), raw=("x",)).compare("out", wanted.at))


def test_bits_of_real_numbers_are_refused() -> None:
    with pytest.raises(Unsupported, match="not an element of a raw input"):
        execute(by_bits(0))
    with pytest.raises(Unsupported, match="not an element of a raw input"):
        symbolic_input("x", (4,)).view(torch.int32).at(nf.ZERO)


RAW = {
    "sum": lambda x: x + 1,
    "difference": lambda x: x - x,
    "product": lambda x: x * 0,
    "comparison": lambda x: x >= x,
    "maximum": lambda x: x.clamp(min=0),
    "exp": lambda x: x.exp(),
    "choice": lambda x: torch.where(symbolic_input("m", (4,), Integers()) >= 0, x, x + 0),  # type: ignore[call-overload]
    "total": lambda x: x.sum(0, keepdim=True),
    "equality": lambda x: x == x,
}


@pytest.mark.parametrize("name", RAW)
def test_a_raw_element_is_no_number(name: str) -> None:
    with pytest.raises(Indefinite, match="may be NaN"):
        RAW[name](symbolic_input("x", (4,), raw=True)).at(nf.ZERO)


def test_a_kernel_that_computes_with_raw_elements_is_refused() -> None:
    @T.prim_func
    def kernel(x: T.Tensor((4,), "float32"), out: T.Tensor((4,), "float32")):
        with T.Kernel(4, threads=1) as i:
            out[i] = x[i] - x[i]

    assert execute(kernel)
    with pytest.raises(Indefinite, match="may be NaN"):
        execute(kernel, raw=("x",))


def test_raw_elements_are_the_same_only_if_they_are_one() -> None:
    element = Raw(nf.read("x", 0))
    assert element == element
    assert element != Value(nf.read("x", 0))
    assert extended.bits(element).form is extended.bits(Raw(nf.read("x", 0))).form


# Torch


INTEGERS = {
    "arange": lambda x: torch.arange(x.shape[-1], device=x.device) + x,
    "pad": lambda x: torch.nn.functional.pad(x, (1, 2), value=7),
    "shifted": lambda x: x[:, (torch.arange(x.shape[-1], device=x.device) - 1).clamp(min=0)],
    "amin": lambda x: x.amin(-1, keepdim=True) - x.amax(0),
    "counted": lambda x: (x > 0).sum(-1),
    "gather": lambda x: x.gather(-1, torch.where(x > 2, 1, 0)),
}


@pytest.mark.parametrize("name", INTEGERS)
def test_integer_functions_agree_with_torch(name: str) -> None:
    x = torch.randint(-5, 6, (3, 4), generator=torch.Generator().manual_seed(0))
    wanted = INTEGERS[name](x)
    got: SymbolicTensor = INTEGERS[name](symbolic_input("x", (3, 4), Integers()))
    assert got.integer
    assert got.shape == tuple(wanted.shape)
    for index in torch.cartesian_prod(*[torch.arange(n) for n in wanted.shape]).reshape(-1, wanted.ndim).tolist():
        assert (
            evaluate(got.at(*map(nf.form, index)), {}, lambda _, i: float(x[tuple(i)])) == wanted[tuple(index)].item()
        )


def test_a_symbolic_range_has_a_symbolic_length() -> None:
    n = nf.variable("n")
    index: Any = torch.arange(symbolic_input("x", (n,)).shape[0], device=symbolic_input("x", (n,)).device)
    assert index.form_shape == (n,)
    assert index.at(block()) is block()


def test_a_strided_sum_is_the_sum() -> None:
    def row(b: Form) -> Form:
        return nf.summation(nf.apply("floordiv", nf.variable("n") + 7, 8), lambda t: element(t * 8 + b))

    def element(k: Form) -> Form:
        return ge(nf.variable("n") - 1 - k) * nf.read("x", k)

    with nf.tiled(nf.variable("n"), 8, strided=True):
        total = nf.summation(nf.variable("n"), lambda k: nf.read("x", k))
    assert total is nf.summation(8, row)
    plain = nf.summation(nf.variable("n"), lambda k: nf.read("x", k))
    values = {"n": 19.0}
    assert evaluate(total, values, lambda _, i: float(i[0] ** 2)) == evaluate(
        plain, values, lambda _, i: float(i[0] ** 2)
    )
