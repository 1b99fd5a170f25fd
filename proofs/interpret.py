"""``lemmata.proofs.interpret(kernel, *tensors)``: what `lemmata.proofs.engine.interpreter.interpret.interpret` documents.

This folder is a package without an ``__init__``, so the function is reached through a module that can be called.
"""

import sys
from types import ModuleType

from .engine.interpreter.interpret import Fault, interpret

__all__ = ["Fault", "interpret"]


class _Callable(ModuleType):
    __call__ = staticmethod(interpret)


sys.modules[__name__].__class__ = _Callable
