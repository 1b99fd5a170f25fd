"""That a kernel writes all elements that it has to, of an output of which others keep what they held: L1 does not claim it."""

from __future__ import annotations

from functools import reduce
from operator import mul

from .engine.execution.contents import Write
from .engine.execution.outcome import Execution
from .engine.forms import normal_form as nf
from .engine.forms.equations import Equation
from .engine.forms.normal_form import ONE, ZERO, Form


def is_written(
    execution: Execution, output: str, index: tuple[Form, ...], steps: tuple[Form, ...], *where: Form
) -> Equation:
    """Return that one of the writes to an output, in the last of these steps of its loops, is of an index, where that holds."""
    count = sum((_covered(w, index, steps) for w in execution.writes.get(output, [])), ZERO)
    missed = reduce(mul, where, ONE - nf.nonnegative(count - 1))
    statement = f"{output}[{', '.join(map(str, index))}] is written"
    return Equation(statement, execution.facts.holds(ONE - missed), missed, ZERO)


def _covered(write: Write, index: tuple[Form, ...], steps: tuple[Form, ...]) -> Form:
    """Return whether a write, in the last of these steps of its loops, is of an index: a form that is 0 or 1."""
    at = dict(zip(write.axes, steps[-len(write.axes) :], strict=True))
    values = {nf.number(axis.variable): step for axis, step in at.items()}
    conditions = [nf.zero(i - nf.substitute(w, values)) for i, w in zip(index, write.index, strict=True)]
    for axis, step in at.items():
        conditions += [nf.nonnegative(step - axis.lower), nf.nonnegative(axis.lower + axis.extent - 1 - step)]
    return reduce(mul, [*conditions, *(nf.substitute(c, values) for c in write.path)], ONE)
