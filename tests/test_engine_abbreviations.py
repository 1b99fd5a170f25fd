"""Values that are abbreviated where they are stored, and what is known of the integers that choose them."""

# No `from __future__ import annotations`: TileLang could not resolve the sizes that only annotations name.
from functools import partial
from typing import Any

import pytest
import tilelang.language as T
import torch
from hypothesis import given
from hypothesis import strategies as st

from lemmata.proofs.engine.base.errors import Unsupported
from lemmata.proofs.engine.execution.abbreviations import Abbreviating, Abbreviation
from lemmata.proofs.engine.execution.outcome import Execution
from lemmata.proofs.engine.execution.symbolic import block, execute
from lemmata.proofs.engine.forms import extended
from lemmata.proofs.engine.forms import normal_form as nf
from lemmata.proofs.engine.forms.entailment import Facts
from lemmata.proofs.engine.forms.extended import Indefinite, Value
from lemmata.proofs.engine.forms.normal_form import ONE, ZERO, Form
from lemmata.proofs.engine.layers.comparison import facts, symbolic_input
from lemmata.proofs.engine.reference.pull_array import Extent, Integers, deciding
from lemmata.reference.contract import Contract, Size, Static, TensorSpec

F32 = "float32"
count = T.dynamic("count")
a, b, n = nf.variable("a", "integer"), nf.variable("b", "integer"), nf.variable("n")


@T.prim_func
def weighed(x: T.Tensor((count,), F32), y: T.Tensor((count,), F32), out: T.Tensor((count, 32), F32)):
    """exp of x, or of y in the first block, whose even elements are -inf."""
    with T.Kernel(count, threads=32) as i:
        loaded = T.alloc_fragment((32,), F32)
        for t in T.Parallel(32):
            loaded[t] = T.if_then_else(i >= 1, x[i], T.if_then_else(t % 2 == 0, -T.infinity(F32), y[i] * 2))
        for t in T.Parallel(32):
            out[i, t] = T.exp(loaded[t])


def logit(i: Form, t: Form, doubled: int = 2, odd: int = 1) -> Value:
    """What the kernel loads."""
    none = nf.zero(t - 2 * nf.floordiv(t, 2) - (1 - odd))
    first = extended.select(none, extended.negative(extended.INFINITY), Value(nf.read("y", i) * doubled))
    return extended.select(nf.nonnegative(i - 1), Value(nf.read("x", i)), first)


@T.prim_func
def weighed_later(x: T.Tensor((count,), F32), out: T.Tensor((count, 32), F32)):
    """exp of x - x, or NaN in the first block, which stores nothing."""
    with T.Kernel(count, threads=32) as i:
        loaded, top = T.alloc_fragment((32,), F32), T.alloc_fragment((1,), F32)
        for t in T.Parallel(32):
            loaded[t] = T.if_then_else(i >= 1, x[i], -T.infinity(F32))
        T.reduce_max(loaded, top, dim=0)
        for t in T.Parallel(32):
            loaded[t] = T.exp(loaded[t] - top[0])
        if i >= 1:
            for t in T.Parallel(32):
                out[i, t] = loaded[t]


def read(abbreviation: Abbreviation, kernel: Any = weighed) -> Execution:
    """Return the execution of a kernel, in which what it loads is abbreviated."""

    def loaded(place: tuple[Form, ...], value: Value) -> Any:
        return (abbreviation, (block("x"), *place)) if "x[" in str(value.form) else None

    return execute(kernel, facts=Facts(), reading=partial(Abbreviating, loaded))


def test_what_is_computed_of_an_abbreviated_value_is_read_with_its_abbreviation() -> None:
    execution = read(Abbreviation("logit", logit))
    assert [e.holds for e in execution.equations] == [True]
    (write,) = execution.writes["out"]
    i, t = write.index
    assert execution.same(write.value, Value(logit(i, t).finite * nf.exp(nf.apply("logit", i, t))))
    assert not execution.same(write.value, Value(nf.exp(nf.apply("logit", i, t))))


@pytest.mark.parametrize("wrong", [{"doubled": 1}, {"odd": 0}])
def test_an_abbreviation_of_another_value_is_noticed(wrong: dict[str, int]) -> None:
    execution = read(Abbreviation("logit", partial(logit, **wrong)))
    assert [e.holds for e in execution.equations] == [False]


def element(i: Form, t: Form, shift: int = 0) -> Value:
    """What the other kernel loads in all blocks but the first."""
    return Value(nf.read("x", i + shift))


def after_the_first(i: Form, t: Form) -> Form:
    return nf.nonnegative(i - 1)


def test_of_what_an_abbreviation_is_elsewhere_nothing_may_be_stored() -> None:
    with pytest.raises(Indefinite, match="inf"):
        execute(weighed_later, facts=Facts())
    execution = read(Abbreviation("element", element, after_the_first), weighed_later)
    assert [e.holds for e in execution.equations] == [True]
    with pytest.raises(Unsupported, match="a store of what comes of element"):
        read(Abbreviation("element", element, after_the_first), weighed)


@pytest.mark.parametrize(("shift", "where"), [(1, after_the_first), (0, lambda *_: ONE)], ids=["shifted", "everywhere"])
def test_an_abbreviation_that_is_wrong_where_it_stands_for_a_value_is_noticed(shift: int, where: Any) -> None:
    execution = read(Abbreviation("element", partial(element, shift=shift), where), weighed_later)
    assert [e.holds for e in execution.equations] == [False]


def test_one_name_is_of_one_abbreviation() -> None:
    """The planted error: each store has an abbreviation of its own, and all have one name."""

    def loaded(place: tuple[Form, ...], _: Value) -> Any:
        return Abbreviation("element", element, after_the_first), (block("x"), *place)

    with pytest.raises(ValueError, match="two abbreviations are named 'element'"):
        execute(weighed_later, facts=Facts(), reading=partial(Abbreviating, loaded))


@T.prim_func
def shared(x: T.Tensor((count,), F32), out: T.Tensor((count, 32), F32)):
    """exp of twice x, by way of shared memory."""
    with T.Kernel(count, threads=32) as i:
        loaded = T.alloc_shared((32,), F32)
        for t in T.Parallel(32):
            loaded[t] = x[i] * 2
        for t in T.Parallel(32):
            out[i, t] = T.exp(loaded[t])


def doubled(i: Form, _: Form, factor: int) -> Value:
    return Value(nf.read("x", i) * factor)


@pytest.mark.parametrize("factor", [2, 1])
def test_what_threads_share_is_abbreviated(factor: int) -> None:
    execution = read(Abbreviation("twice", partial(doubled, factor=factor)), shared)
    assert [e.holds for e in execution.equations] == [factor == 2]
    (write,) = execution.writes["out"]
    assert execution.same(write.value, Value(nf.exp(nf.apply("twice", *write.index))))


@T.prim_func
def rising(x: T.Tensor((count, 32), F32), out: T.Tensor((count, 32), F32)):
    """exp of x."""
    with T.Kernel(count, threads=32) as i:
        loaded = T.alloc_shared((32,), F32)
        for t in T.Parallel(32):
            loaded[t] = x[i, t]
        for t in T.Parallel(32):
            out[i, t] = T.exp(loaded[t])


def test_an_abbreviation_that_stands_for_several_numbers_is_refused() -> None:
    """The planted error: all elements of a row have one name, which stands for that of whichever is stored."""
    stored: list[Form] = []

    def loaded(place: tuple[Form, ...], _: Value) -> Any:
        stored[:] = place
        return each, (block("x"),)

    each = Abbreviation("each", lambda i: Value(nf.read("x", i, *stored)))
    with pytest.raises(Unsupported, match="each stands for what depends on t"):
        execute(rising, facts=Facts(), reading=partial(Abbreviating, loaded))


# Integers


def test_a_quotient_of_natural_numbers_is_natural_and_no_larger() -> None:
    known, quotient = Facts(), nf.apply("floordiv", a, b)
    assert known.decide(nf.nonnegative(quotient)) is None
    with known.assuming(nf.nonnegative(a), nf.nonnegative(b - 1)):
        assert known.holds(nf.nonnegative(quotient))
        assert known.holds(nf.nonnegative(a - quotient))
        assert known.decide(nf.nonnegative(quotient - 1)) is None
    for of in (a, b - 1):
        with known.assuming(nf.nonnegative(of)):
            assert known.decide(nf.nonnegative(quotient)) is None


def test_a_quotient_of_the_reference_by_a_size_that_is_not_0() -> None:
    first, known = symbolic_input("first", (n,), Integers(torch.int32, -7, 5)), Facts()
    with deciding(known), pytest.raises(Unsupported, match="rounded down, by n"):
        first // Extent(n)
    known.add(nf.nonnegative(n - 1))
    with deciding(known):
        quotient = first // Extent(n)
        assert quotient.at(a) is nf.apply("floordiv", nf.read("first", a), n)
        assert quotient.integer == Integers(torch.int32, -7, 5)
    assert (first // 4).integer == Integers(torch.int32, -2, 1)


def test_a_clamp_within_a_clamp_is_decided() -> None:
    known, clamped = Facts(), -nf.maximum((-nf.maximum((ZERO, a)), 1 - n))
    with known.assuming(nf.nonnegative(a), nf.nonnegative(n - 1 - a)):
        assert known.decide_all(clamped) is a
    with known.assuming(nf.nonnegative(a)):
        assert known.decide_all(clamped) is not a


INT, FLOAT = (torch.int32, torch.int64), (torch.float32,)


def contract(*relations: str) -> Contract:
    """A contract on two sizes, and on two tables of which one is of integers."""
    inputs = TensorSpec("table", "n", INT), TensorSpec("x", "m", FLOAT)
    return Contract("op", {"n": Size(1, 99), "m": Size(1, 99)}, {"k": Static(int, 1, 9)}, inputs, (), (), relations)


def test_elements_of_which_nothing_is_said_are_integers_all_the_same() -> None:
    known, element = facts(contract()), nf.read("table", ZERO)
    assert known.holds(nf.nonnegative(element + 2**63))
    assert known.decide(nf.nonnegative(element + 2**31)) is None
    with known.assuming(nf.zero(a - ZERO)):
        assert known.same(nf.read("table", a), element)
        assert not known.same(nf.read("x", a), nf.read("x", ZERO))


RELATIONS = "n <= m", "n+1 < k*m", "m-n >= k", "n*k > m", "n == m//k", "n != m%k", "(n+k)//3 == m//2", "n%4 == 0"


@given(st.sampled_from(RELATIONS), st.integers(1, 99), st.integers(1, 99), st.integers(1, 9))
def test_relations_are_known_of_the_sizes(relation: str, n: int, m: int, k: int) -> None:
    """They contradict those sizes of which Python finds that they do not hold, and no others."""
    known = facts(contract(relation), {"k": k, "eps": 0.5})
    with known.assuming(nf.zero(nf.variable("n") - n), nf.zero(nf.variable("m") - m)):
        contradicted = known.decide(nf.nonnegative(a)) is not None
    assert contradicted is not eval(relation, {"n": n, "m": m, "k": k})


def test_a_relation_that_mentions_what_is_not_given_is_left_out() -> None:
    assert facts(contract("n <= m")).holds(nf.nonnegative(nf.variable("m") - n))
    known = facts(contract("n <= m", "k*n <= m"))
    assert known.decide(nf.nonnegative(nf.variable("m") - 2 * n)) is None
