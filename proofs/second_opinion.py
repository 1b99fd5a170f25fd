"""``lemmata.proofs.second_opinion(kernel, contract, reference, sizes=...)``: see `engine.interpreter.second_opinion`."""

from .door import called_as
from .engine.interpreter.second_opinion import run, second_opinion

__all__ = ["run", "second_opinion"]

called_as(__name__, second_opinion)
