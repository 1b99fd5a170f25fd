"""What floats make of a sum of parts of a gradient."""

from __future__ import annotations

from collections.abc import Sequence

import z3

from .engine.base.conditions import Condition
from .engine.layers.lemmas import Theorem, lemma


def _rounding() -> Sequence[Condition]:
    """Return that one more part, off by at most v of itself and added with an error of at most u, keeps the bound.

    ``held`` is what the floats hold of the sum ``before``, ``mass`` the sum of magnitudes, ``growth`` (1 + v) (1 + u)^m. The
    addition gives (held + rounded) (1 + error); ``product`` stands for the error times held + rounded.
    """
    before, held, mass, growth, u, v = z3.Reals("before held mass growth u v")
    part, rounded, error, product = z3.Reals("part rounded error product")
    after, whole = before + part, mass + z3.Abs(part)
    off = held + rounded - after
    given = (u >= 0, v >= 0, growth >= 1 + v, mass >= z3.Abs(before))
    bounded = (z3.Abs(held - before) <= (growth - 1) * mass, z3.Abs(rounded - part) <= v * z3.Abs(part))
    small = v * z3.Abs(part) <= (growth - 1) * z3.Abs(part)
    within = z3.Abs(off) <= (growth - 1) * whole
    spread = u * z3.Abs(off + after) <= u * (growth - 1) * whole + u * whole
    return [
        lemma("without a part nothing is off", z3.Abs(held - before) <= (growth - 1) * mass,
              *given, held == 0, before == 0, mass == 0),
        lemma("the magnitudes bound the sum", z3.Abs(after) <= whole, *given),
        lemma("the growth is at least that of the rounding", growth * (1 + u) >= 1 + v, *given),
        lemma("a part's rounding is within the growth", small, *given),
        lemma("before the addition rounds, what is held is within the growth", within, *given, *bounded, small),
        lemma("a product with u is monotone", spread, *given, within, z3.Abs(after) <= whole),
        lemma("what is off then, and the product with the error, are off together",
              (held + rounded) * (1 + error) - after == off + error * (held + rounded)),
        lemma("an error of at most u changes a number by at most u of it",
              z3.Abs(error * after) <= u * z3.Abs(after), z3.Abs(error) <= u),
        lemma("after the addition, what is held is within (1 + u) times the growth",
              z3.Abs(off + product) <= (growth * (1 + u) - 1) * whole,
              *given, within, spread, z3.Abs(product) <= u * z3.Abs(off + after)),
    ]  # fmt: skip


ROUNDED = Theorem(
    "rounding", "A sum of m parts, each rounded to bf16 and then added to those before it in float32, differs from the sum of "
    "the parts by at most ((1 + 2^-8) (1 + 2^-24)^m - 1) times the sum of their magnitudes, if nothing over- or underflows.",
    _rounding, "induction over the parts; layer L2 says that they are added so, each once",
)  # fmt: skip
