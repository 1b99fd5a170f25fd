"""A reference that iterates, as a sequence of states each of which is the same function of its predecessor.

Inside ``cutting``, the result of every softmax and of every division by a tensor is recorded, and replaced by opaque
elements ``x0(i, j)``, ``x1(i, j)``, ... A step of the reference is then a function of its predecessor, whatever that was.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal, NamedTuple, cast

from ..base.errors import Unsupported
from ..base.setting import Setting
from ..forms import normal_form as nf
from ..forms.entailment import Facts
from ..forms.equations import elements, equal
from ..forms.extended import Value
from ..forms.normal_form import Form
from ..forms.ring import rewritten
from .pull_array import PullArray, T


class Cut(NamedTuple):
    """A softmax or division of the reference: the result, and the name of the elements that the rest of it sees."""

    name: str
    tensor: PullArray


_cuts = Setting[list[Cut] | None](None)


def recorded(result: T) -> T:
    """Return a result, or its elements as a cut if there is to be one here."""
    if _cuts.value is None:
        return result
    name = f"x{len(_cuts.value)}"
    _cuts.value.append(Cut(name, result))
    return type(result)(result.form_shape, lambda *i: Value(nf.apply(name, *i)))


def cutting() -> AbstractContextManager[list[Cut]]:
    """Make every softmax and every division by a tensor, inside, a cut; they are listed in order."""
    return cast(AbstractContextManager[list[Cut]], _cuts.set_to([]))


@dataclass(frozen=True)
class Recurrence:
    """States x_0, ..., x_count of a reference, x_{k+1} = F(k, x_k).

    In the forms below an element of another recurrence y in state q is ``y(q, i...)``.
    """

    name: str  # the elements of the predecessor are ``name(i...)`` in ``step``
    states: tuple[Cut, ...]  # the tensors; the name of one that is no cut is empty
    initial: Callable[..., Form]  # an element of x_0
    step: Callable[..., Form]  # element [i...] of x_{k+1} over the elements of x_k, from k and i
    others: tuple[Recurrence, ...]  # those on whose states the steps depend

    @property
    def count(self) -> int:
        """How many steps there are."""
        return len(self.states) - 1

    @property
    def shape(self) -> tuple[Form, ...]:
        """The shape of every state."""
        return self.states[0].tensor.form_shape


def recurrence(
    name: str,
    states: Sequence[Cut | PullArray],
    cuts: Sequence[Cut],
    *,
    others: Sequence[Recurrence] = (),
    direction: Literal[1, -1] = 1,
) -> Recurrence:
    """Return the states x_0, x_1, ... of a reference as a recurrence; the first may be any tensor over the cuts.

    Those of the cuts that lie between two states are composed. The steps may use states of ``others``: step k the state
    k + constant, or in ``direction`` -1 the state constant - k. Unsupported if a step is another function of its
    predecessor than the first, or depends on other cuts too.
    """
    numbered = ((o.name, number, state.name) for o in others for number, state in enumerate(o.states) if state.name)
    of_others = {state: partial(nf.apply, other, number) for other, number, state in numbered}
    sequence = tuple(state if isinstance(state, Cut) else Cut("", state) for state in states)
    unfolding = _Unfolding({cut.name: cut.tensor.at for cut in cuts} | of_others)
    steps = [_step(unfolding, name, before, after) for before, after in itertools.pairwise(sequence)]
    first = next((k for k, state in enumerate(sequence[:-1]) if state.name), None)
    if first is None:
        raise Unsupported(f"recurrence {name} has no step from a cut")
    k = nf.fresh("k")
    shift = (k - first) * direction
    shifted = [nf.replacing(o.name, lambda q, *i, n=o.name: nf.apply(n, q + shift, *i)) for o in others]
    general = cache(lambda *index: rewritten(steps[first](*index), shifted))  # step k

    def step(at: Form | int, *index: Form) -> Form:
        return nf.substitute(general(*index), {nf.number(k): nf.form(at)})

    initial = lambda *i: unfolding(sequence[0].tensor.at(*i))  # noqa: E731  one expression, named for the next line
    result = Recurrence(name, sequence, initial, step, tuple(others))
    for number, (state, wanted) in enumerate(zip(sequence, steps, strict=False)):
        _check(result, number, state, wanted, unfolding)
    return result


def _check(result: Recurrence, k: int, state: Cut, wanted: Callable[..., Form], unfolding: _Unfolding) -> None:
    """Check that step k is the common function, at every element."""
    rewritings = [nf.replacing(other.name, _plain(other, unfolding)) for other in result.others]
    if not state.name:
        rewritings.insert(0, nf.replacing(result.name, lambda *i: unfolding(state.tensor.at(*i))))
    for index in elements(result.shape, Facts()):
        if not equal(rewritten(result.step(k, *index), rewritings), wanted(*index)):
            raise Unsupported(f"step {k} of {result.name} is not the same function of its predecessor as the others")


def _plain(other: Recurrence, unfolding: _Unfolding) -> Callable[..., Form]:
    """Return the function from a state's number and an index to an element; a state that is no cut is written out."""

    def value(number: Form, *index: Form) -> Form:
        if (at := number.constant) is None or not 0 <= at <= other.count:
            raise Unsupported(f"state {number} of {other.name} does not exist")
        state = other.states[int(at)]
        return nf.apply(other.name, number, *index) if state.name else unfolding(state.tensor.at(*index))

    return value


class _Unfolding:
    """Functions, cuts above all, replaced by what they stand for until none is left."""

    def __init__(self, values: Mapping[str, Callable[..., Form]]) -> None:
        self._rewritings = {name: nf.replacing(name, value) for name, value in values.items()}

    def __call__(self, p: Form, keep: Sequence[str] = ()) -> Form:
        """Return the form without those functions, but for those to be kept."""
        while True:
            functions = {a.function for a in map(nf.atom_of, nf.support(p)) if isinstance(a, nf.Apply)}
            if not (inside := sorted(functions & self._rewritings.keys() - {*keep})):
                return p
            p = rewritten(p, [self._rewritings[name] for name in inside])


def resolve(p: Form, cuts: Sequence[Cut], states: Mapping[str, Callable[..., Form]]) -> Form:
    """Return a form over cuts with every cut written out, but for those to which ``states`` gives a value, by name."""
    return _Unfolding({cut.name: cut.tensor.at for cut in cuts} | dict(states))(p)


def _step(unfolding: _Unfolding, name: str, state: Cut, following: Cut) -> Callable[..., Form]:
    """Return an element of the following state over those of a state, which are called by the name of the recurrence."""
    renaming = nf.replacing(state.name, partial(nf.apply, name))
    return cache(lambda *index: renaming(unfolding(following.tensor.at(*index), (state.name,))))
