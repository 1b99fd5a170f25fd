"""Forms that a proof makes are forgotten behind it, and what is kept of them beyond that proves nothing."""

from __future__ import annotations

import pytest

from lemmata.proofs.engine.forms import forgetting as memory
from lemmata.proofs.engine.forms import normal_form as nf
from lemmata.proofs.engine.forms import ring
from lemmata.proofs.engine.forms.forgetting import forgetting


def sizes() -> tuple[int, ...]:
    return len(ring._ATOMS), len(ring._NUMBER), len(ring._FORMS)


def test_what_was_made_before_stays_the_same_object() -> None:
    before = nf.variable("kept") + 1
    with forgetting():
        assert nf.variable("kept") + 1 is before
        inside = nf.variable("gone")
    assert nf.variable("kept") + 1 is before
    assert nf.variable("gone") is not inside


def test_tables_are_as_long_as_before_and_nothing_is_remembered_of_the_rest() -> None:
    nf.variable("kept")
    length = sizes()
    with forgetting():
        p = nf.apply("f", nf.variable("u1") * nf.variable("u2"))
        assert len(nf.support(p)) == 3
        with forgetting():
            inner = nf.variable("u3")
        assert nf.variable("u3") is inner, "the outermost alone forgets"
        assert sizes() > length
    assert sizes() == length
    assert all(kept.cache_info().currsize == 0 for kept in memory._remembered)


def fail() -> None:
    nf.variable("of an error")
    raise ZeroDivisionError


def test_they_are_forgotten_after_an_error_too() -> None:
    length = sizes()
    with pytest.raises(ZeroDivisionError), forgetting():
        fail()
    assert sizes() == length


def test_no_other_atom_gets_the_number_of_one_that_is_forgotten() -> None:
    """Planted: a form is kept. What it is equal to, and what its atom stands for, is not known any more."""
    with forgetting():
        kept = nf.variable("one")
    other = nf.variable("another")
    assert nf.number(kept) != nf.number(other)
    assert kept - other is not nf.ZERO
    assert kept - nf.variable("one") is not nf.ZERO
    with pytest.raises(KeyError):
        nf.atom_of(nf.number(kept))
