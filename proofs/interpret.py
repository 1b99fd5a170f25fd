"""``lemmata.proofs.interpret(kernel, *tensors)``: what `lemmata.proofs.engine.interpreter.interpret.interpret` documents."""

from .door import called_as
from .engine.interpreter.interpret import Fault, interpret

__all__ = ["Fault", "interpret"]

called_as(__name__, interpret)
