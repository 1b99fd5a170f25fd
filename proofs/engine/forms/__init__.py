"""The normal form of real expressions and its laws: the ring, extended reals, sums, cases, equality, entailment, signs.

It promises that two forms which it calls equal denote the same function over the reals wherever both are defined, and
that what it says is entailed follows from the facts given. It trusts the laws that its modules state, one by one, and
the solvers. It never sees the compiler's IR. It imports ``base`` and ``smt``; ``reference``, ``execution`` and ``layers``
may import it.
"""

from . import pretty  # noqa: F401  so that forms print themselves
