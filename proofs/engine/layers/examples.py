"""The layer ``run``: a kernel interpreted on examples.

Nothing here is trusted: the layer is reported as tested and is never counted as a proof.
"""

from __future__ import annotations

from ..base.report import Failure, Layer
from ..interpreter.lanes import Fault
from .problem import Problem


def run(problem: Problem, name: str) -> Layer:
    """Return what runs on the examples showed, up to the first that goes wrong."""
    assert problem.examples is not None
    count, failures = 0, []
    try:
        for inputs, right in problem.examples.check(problem.kernel):
            count += 1
            if not right:
                failures.append(Failure("result", inputs, verdict="wrong"))
                break
    except Fault as error:
        count += 1
        failures.append(Failure("fault", str(error), verdict="found"))
    statement = f"{problem.examples.statement} [{'FAILED' if failures else f'tested, not proved ({count} runs)'}]"
    return Layer(name, count, count - len(failures), 0, 0.0, tuple(failures), statements=(statement,))
