"""A reference that iterates, as a sequence of states each of which is the same function of its predecessor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

from ..base.errors import Unsupported
from ..forms import normal_form as nf
from ..forms.entailment import Facts
from ..forms.equality import equal
from ..forms.equations import elements
from ..forms.normal_form import Form
from ..forms.ring import Rewriting
from .cutting import Cut
from .pull_array import PullArray


@dataclass(frozen=True)
class Recurrence:
    """States x_0, ..., x_count of a reference, x_{k+1} = F(k, x_k).

    In the forms below an element of another recurrence y in state q is ``y(q, i...)``.

    Attributes:
        name: the elements of the predecessor are ``name(i...)`` in ``step``.
        states: the tensors.
        initial: an element of x_0.
        step: element [i...] of x_{k+1} over the elements of x_k, from k and i.
        others: the recurrences on whose states the steps depend.
    """

    name: str
    states: tuple[Cut | PullArray, ...]
    initial: Callable[..., Form]
    step: Callable[..., Form]
    others: tuple[Recurrence, ...]

    @property
    def count(self) -> int:
        """How many steps there are."""
        return len(self.states) - 1

    @property
    def shape(self) -> tuple[Form, ...]:
        """The shape of every state."""
        return _tensor(self.states[0]).form_shape


def recurrence(
    name: str,
    states: Sequence[Cut | PullArray],
    cuts: Sequence[Cut],
    *,
    others: Sequence[Recurrence] = (),
    direction: Literal[1, -1] = 1,
) -> Recurrence:
    """Check that states of a reference form a recurrence.

    Args:
        name: its name.
        states: x_0, x_1, ..., among the cuts; the first may be any tensor over them.
        cuts: all cuts of the reference. Those between two states are composed.
        others: recurrences whose states the steps may use.
        direction: 1 if step k uses state k + constant of the others, -1 if it uses state constant - k.

    Raises:
        Unsupported: a step is another function of its predecessor than the first, or depends on other cuts too.
    """
    families = {
        state.name: partial(nf.apply, other.name, number)
        for other in others
        for number, state in enumerate(other.states)
        if isinstance(state, Cut)
    }
    unfolding = _Unfolding({cut.name: cut.tensor.at for cut in cuts} | families)
    steps = [_step(unfolding, name, states[k], states[k + 1]) for k in range(len(states) - 1)]
    first = next((k for k, s in enumerate(states[:-1]) if isinstance(s, Cut)), None)
    if first is None:
        raise Unsupported(f"recurrence {name} has no step from a cut")
    template = _Template(steps[first], first, others, direction)
    initial = lambda *i: unfolding(_tensor(states[0]).at(*i))  # noqa: E731
    result = Recurrence(name, tuple(states), initial, template, tuple(others))
    for k, (state, step) in enumerate(zip(states[:-1], steps, strict=True)):
        _check(result, k, state, step, unfolding)
    return result


class _Template:
    """A step of number ``at``, in which the states of the others shift as the number of the step changes."""

    def __init__(
        self, step: Callable[..., Form], at: int, others: Sequence[Recurrence], direction: Literal[1, -1]
    ) -> None:
        self._step, self._at, self._others, self._direction = step, at, others, direction
        self._shifts: dict[Form, list[Rewriting]] = {}

    def __call__(self, k: Form | int, *index: Form) -> Form:
        k = nf.form(k)
        if k not in self._shifts:
            shift = (k - self._at) * self._direction
            self._shifts[k] = [
                nf.replacing(other.name, lambda q, *i, n=other.name: nf.apply(n, q + shift, *i))
                for other in self._others
            ]
        result = self._step(*index)
        for rewriting in self._shifts[k]:
            result = rewriting(result)
        return result


def _check(
    result: Recurrence, k: int, state: Cut | PullArray, step: Callable[..., Form], unfolding: _Unfolding
) -> None:
    """Check that step k is the common function, at every element."""
    rewritings = [nf.replacing(other.name, _plain(other, unfolding)) for other in result.others]
    if not isinstance(state, Cut):
        rewritings.insert(0, nf.replacing(result.name, lambda *i: unfolding(state.at(*i))))
    for index in elements(result.shape, Facts()):
        wanted = result.step(k, *index)
        for rewriting in rewritings:
            wanted = rewriting(wanted)
        if not equal(wanted, step(*index)):
            raise Unsupported(f"step {k} of {result.name} is not the same function of its predecessor as the others")


def _plain(other: Recurrence, unfolding: _Unfolding) -> Callable[..., Form]:
    """Return the function from a state's number and an index to an element; a state that is no cut is written out."""

    def value(number: Form, *index: Form) -> Form:
        at = number.constant
        if at is None or not 0 <= at <= other.count:
            raise Unsupported(f"state {number} of {other.name} does not exist")
        state = other.states[int(at)]
        if isinstance(state, Cut):
            return nf.apply(other.name, number, *index)
        return unfolding(state.at(*index))

    return value


class _Unfolding:
    """Functions, cuts above all, replaced by what they stand for until none is left."""

    def __init__(self, values: Mapping[str, Callable[..., Form]]) -> None:
        self._rewritings = {name: nf.replacing(name, value) for name, value in values.items()}

    def __call__(self, p: Form, keep: Sequence[str] = ()) -> Form:
        """Return the form without those functions, but for those to be kept."""
        while inside := sorted(_functions(p) & self._rewritings.keys() - set(keep)):
            for name in inside:
                p = self._rewritings[name](p)
        return p


def resolve(p: Form, cuts: Sequence[Cut], states: Mapping[str, Callable[..., Form]]) -> Form:
    """Return a form over cuts with every cut written out, but for those to which ``states`` gives a value, by name."""
    return _Unfolding({cut.name: cut.tensor.at for cut in cuts} | dict(states))(p)


def _step(unfolding: _Unfolding, name: str, state: Cut | PullArray, following: Cut | PullArray) -> Callable[..., Form]:
    keep = (state.name,) if isinstance(state, Cut) else ()
    rename = nf.replacing(keep[0], lambda *i: nf.apply(name, *i)) if keep else None

    def step(*index: Form) -> Form:
        result = unfolding(_tensor(following).at(*index), keep)
        return rename(result) if rename else result

    return cache(step)


def _tensor(state: Cut | PullArray) -> PullArray:
    return state.tensor if isinstance(state, Cut) else state


def _functions(p: Form) -> set[str]:
    """Return the names of the uninterpreted functions in a form."""
    return {a.function for a in map(nf.atom_of, nf.support(p)) if isinstance(a, nf.Apply)}
